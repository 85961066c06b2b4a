-- What jobs could not delete on their hosts: deleted later, once nothing refers to it.
CREATE TABLE leftovers (
    id TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
);
