-- What stored memories take, so that a machine's sum needs no documents; and memories by age, for whoever compresses them.
ALTER TABLE snapshots ADD COLUMN stored BIGINT NOT NULL DEFAULT 0;
CREATE INDEX snapshots_by_kind ON snapshots (kind, id);
