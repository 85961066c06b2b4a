-- One set for SQLite and PostgreSQL: only TEXT and BIGINT. Documents are JSON; moments are microseconds; truth is 0 or 1.

-- One row: which manager may write, and the newest event.
CREATE TABLE keeper (
    one BIGINT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL,
    holder TEXT NOT NULL,
    since BIGINT NOT NULL,
    last_event BIGINT NOT NULL
);
INSERT INTO keeper (one, epoch, holder, since, last_event) VALUES (1, 0, '', 0, 0);

CREATE TABLE vms (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    generation BIGINT NOT NULL,
    phase TEXT NOT NULL,
    searchable TEXT NOT NULL,
    document TEXT NOT NULL
);
CREATE INDEX vms_by_phase ON vms (phase, id);

CREATE TABLE snapshots (
    id TEXT NOT NULL PRIMARY KEY,
    vm TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    generation BIGINT NOT NULL,
    phase TEXT NOT NULL,
    kind TEXT NOT NULL,
    automatic BIGINT NOT NULL,
    locked BIGINT NOT NULL,
    parent TEXT,
    created BIGINT NOT NULL,
    expires BIGINT,
    searchable TEXT NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (vm, name)
);
CREATE INDEX snapshots_by_vm ON snapshots (vm, id);
CREATE INDEX snapshots_by_parent ON snapshots (parent);
CREATE INDEX snapshots_by_expiry ON snapshots (expires);

CREATE TABLE snapshot_tags (
    snapshot TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (snapshot, tag)
);
CREATE INDEX snapshot_tags_by_tag ON snapshot_tags (tag, snapshot);

CREATE TABLE templates (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    generation BIGINT NOT NULL,
    searchable TEXT NOT NULL,
    document TEXT NOT NULL
);

-- Who refers to a volume. A volume is kept while anybody does.
CREATE TABLE volume_owners (
    owner_kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    array_name TEXT NOT NULL,
    volume TEXT NOT NULL,
    PRIMARY KEY (owner, owner_kind, array_name, volume)
);
CREATE INDEX volume_owners_by_volume ON volume_owners (volume, array_name);

CREATE TABLE jobs (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    is_open BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    cancel_wish BIGINT NOT NULL,
    ended BIGINT,
    document TEXT NOT NULL
);
CREATE INDEX jobs_by_openness ON jobs (is_open, id);
CREATE INDEX jobs_by_end ON jobs (ended);

CREATE TABLE job_vms (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    vm TEXT NOT NULL,
    PRIMARY KEY (vm, job)
);
CREATE INDEX job_vms_by_job ON job_vms (job);

CREATE TABLE job_steps (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (job, position)
);

CREATE TABLE locks (
    resource_kind TEXT NOT NULL,
    resource TEXT NOT NULL,
    -- Checked at the commit: a job takes its locks before its own row is written.
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    mode TEXT NOT NULL,
    PRIMARY KEY (resource, resource_kind, job)
);
CREATE INDEX locks_by_job ON locks (job);

CREATE TABLE requests (
    request_key TEXT NOT NULL PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    job TEXT NOT NULL,
    at BIGINT NOT NULL
);
CREATE INDEX requests_by_age ON requests (at);

CREATE TABLE hosts (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    generation BIGINT NOT NULL,
    document TEXT NOT NULL
);

-- Accounts come later; until then nobody owns a token.
CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE,
    owner TEXT,
    created BIGINT NOT NULL,
    expires BIGINT,
    used BIGINT
);

CREATE TABLE events (
    seq BIGINT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    vm TEXT,
    generation BIGINT NOT NULL,
    change TEXT NOT NULL,
    at BIGINT NOT NULL
);

CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
);
