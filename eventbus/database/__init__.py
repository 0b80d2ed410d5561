"""PostgreSQL as everybody here asks it: SQL, locks, and how many connections a process may need."""
