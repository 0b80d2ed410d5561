#!/bin/sh
# Run once by the image of PostgreSQL, when it makes an empty volume. The application's role is no superuser, and owns
# nothing but the schema that its tables are in: it cannot read files, load code or touch another database.
set -eu

psql --set ON_ERROR_STOP=1 --set password="$FEED_PASSWORD" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE feed LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION;
CREATE DATABASE feed;
REVOKE ALL ON DATABASE feed FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE feed TO feed;
\connect feed
ALTER SCHEMA public OWNER TO feed;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
SQL
