"""The tables of a ledger in SQLite, as steps from one version to the next.

`PRAGMA user_version` is the number of steps taken. A step that was released is never changed: a new one is
added. Times are microseconds since 1970 (UTC), hashes and serial numbers are bytes (serial numbers 20 of
them, which is as long as RFC 5280, 4.1.2.2, allows), lists are JSON.
"""

from __future__ import annotations

_FIRST = """
CREATE TABLE certificates (
  position INTEGER PRIMARY KEY,
  issuer BLOB NOT NULL,
  serial BLOB NOT NULL,
  kind TEXT NOT NULL,
  spiffe_id TEXT NOT NULL,
  not_before INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  issued_at INTEGER NOT NULL,
  requester TEXT NOT NULL,
  attested_by TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  revoked_at INTEGER,
  reason TEXT,
  revoked_by TEXT,
  UNIQUE (serial, issuer)
) STRICT;
CREATE INDEX certificates_by_identity ON certificates (spiffe_id);
CREATE INDEX certificates_by_fingerprint ON certificates (fingerprint);
CREATE INDEX certificates_revoked ON certificates (issuer, not_after) WHERE revoked_at IS NOT NULL;

CREATE TABLE crls (
  issuer BLOB PRIMARY KEY,
  number INTEGER NOT NULL,
  revocations INTEGER NOT NULL,
  der BLOB NOT NULL,
  this_update INTEGER NOT NULL,
  next_update INTEGER NOT NULL
) STRICT;

CREATE TABLE entries (
  position INTEGER PRIMARY KEY,
  entry_id TEXT NOT NULL UNIQUE,
  spiffe_id TEXT NOT NULL,
  parent_id TEXT NOT NULL,
  selectors TEXT NOT NULL,
  svid_ttl INTEGER NOT NULL,
  dns_names TEXT NOT NULL,
  federates_with TEXT NOT NULL,
  hint TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  UNIQUE (spiffe_id, parent_id, selectors)
) STRICT;

CREATE TABLE tokens (
  position INTEGER PRIMARY KEY,
  hash BLOB NOT NULL UNIQUE,
  spiffe_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  used_at INTEGER,
  used_by TEXT
) STRICT;

CREATE TABLE signing_keys (
  position INTEGER PRIMARY KEY,
  use TEXT NOT NULL,
  key_id TEXT NOT NULL,
  state TEXT NOT NULL,
  document TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  changed_at INTEGER,
  UNIQUE (use, key_id)
) STRICT;

CREATE TABLE federated (
  trust_domain TEXT PRIMARY KEY,
  url TEXT NOT NULL,
  profile TEXT NOT NULL,
  endpoint_id TEXT,
  document BLOB,
  sequence INTEGER,
  refresh_hint INTEGER,
  fetched_at INTEGER
) STRICT;

CREATE TABLE counters (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL,
  digest TEXT NOT NULL
) STRICT;
INSERT INTO counters VALUES ('bundle', 0, ''), ('entries', 0, ''), ('revocations', 0, '');

CREATE TABLE audit (
  sequence INTEGER PRIMARY KEY,
  previous TEXT NOT NULL,
  time TEXT NOT NULL,
  event TEXT NOT NULL,
  actor TEXT NOT NULL,
  details TEXT NOT NULL,
  hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
-- Also keeps REPLACE out, which deletes without a trigger.
CREATE TRIGGER audit_is_appended_to BEFORE INSERT ON audit
WHEN NEW.sequence <> (SELECT coalesce(max(sequence), 0) + 1 FROM audit)
BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
"""

# Registrations say how long tokens live: until now 5 minutes, whatever the settings said of theirs.
_JWT_TTL = """
ALTER TABLE entries ADD COLUMN jwt_ttl INTEGER NOT NULL DEFAULT 300000000;
"""

STEPS: tuple[str, ...] = (_FIRST, _JWT_TTL)
VERSION = len(STEPS)
