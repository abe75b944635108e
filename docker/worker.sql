-- The login of workers and dashboard: it reads and writes rows, and can change no table. Postgres runs this once, when it
-- makes the database; `hpopt db upgrade` grants the role its rights.
\set password `cat /run/secrets/worker-password`
create role hpopt_worker nologin;
create role worker login password :'password' in role hpopt_worker;
