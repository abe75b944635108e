-- The logins of workers and dashboard, which cannot change tables. Postgres runs this once, when it initializes the
-- database; `hpopt db upgrade` grants the roles their privileges.
\set worker_password `cat /run/secrets/worker-password`
\set reader_password `cat /run/secrets/reader-password`
create role hpopt_worker nologin;
create role hpopt_reader nologin;
create role worker login password :'worker_password' in role hpopt_worker;
create role reader login password :'reader_password' in role hpopt_reader;
