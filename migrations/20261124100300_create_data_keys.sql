-- One data key per owner and purpose, wrapped by a versioned master key that is not in the database.
-- Deleting a row makes everything it sealed unreadable for ever.
CREATE TABLE keys.data_keys (
    owner          uuid        NOT NULL,
    purpose        text        NOT NULL,
    version        integer     NOT NULL CHECK (version > 0),
    -- nonce (24 bytes) and ciphertext with tag (48 bytes)
    wrapped        bytea       NOT NULL CHECK (octet_length(wrapped) = 72),
    master_version integer     NOT NULL,
    created_at     timestamptz NOT NULL,
    PRIMARY KEY (owner, purpose, version)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON keys.data_keys TO botledger_writer;
