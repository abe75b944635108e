-- The login of workers and dashboard, which can read and write rows but not change tables. Postgres runs this once, when
-- it initializes the database; `hpopt db upgrade` grants the role its privileges.
\set password `cat /run/secrets/worker-password`
create role hpopt_worker nologin;
create role worker login password :'password' in role hpopt_worker;
