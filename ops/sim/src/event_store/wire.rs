//! The messages of `event_store.client.streams` and `event_store.client.server_features`, as far as a
//! writer of one stream needs them. Field numbers are those of EventStoreDB's published `.proto` files;
//! what is not named here is skipped when read, as Protocol Buffers ask.

use std::collections::HashMap;

use bytes::Bytes;
use uuid::Uuid;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WireUuid {
    #[prost(oneof = "uuid_form::Form", tags = "1, 2")]
    pub(super) form: Option<uuid_form::Form>,
}

pub(super) mod uuid_form {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in super::super) enum Form {
        #[prost(message, tag = "1")]
        Structured(Structured),
        #[prost(string, tag = "2")]
        Text(String),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct Structured {
        #[prost(int64, tag = "1")]
        pub(in super::super) most: i64,
        #[prost(int64, tag = "2")]
        pub(in super::super) least: i64,
    }
}

impl WireUuid {
    pub(super) fn text(id: Uuid) -> Self {
        Self { form: Some(uuid_form::Form::Text(id.to_string())) }
    }

    /// Nothing where it is no UUID.
    pub(super) fn read(&self) -> Option<Uuid> {
        match self.form.as_ref()? {
            uuid_form::Form::Text(text) => text.parse().ok(),
            uuid_form::Form::Structured(halves) => {
                Some(Uuid::from_u64_pair(halves.most.cast_unsigned(), halves.least.cast_unsigned()))
            }
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StreamIdentifier {
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) stream_name: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AppendReq {
    #[prost(oneof = "append_req::Content", tags = "1, 2")]
    pub(super) content: Option<append_req::Content>,
}

pub(super) mod append_req {
    use super::{Bytes, HashMap, StreamIdentifier, WireUuid};

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in super::super) enum Content {
        #[prost(message, tag = "1")]
        Options(Options),
        #[prost(message, tag = "2")]
        Proposed(Proposed),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct Options {
        #[prost(message, optional, tag = "1")]
        pub(in super::super) stream: Option<StreamIdentifier>,
        #[prost(oneof = "Expected", tags = "2, 3, 4, 5")]
        pub(in super::super) expected: Option<Expected>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub(in super::super) enum Expected {
        #[prost(uint64, tag = "2")]
        Revision(u64),
        #[prost(message, tag = "3")]
        NoStream(()),
        #[prost(message, tag = "4")]
        Any(()),
        #[prost(message, tag = "5")]
        StreamExists(()),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct Proposed {
        #[prost(message, optional, tag = "1")]
        pub(in super::super) id: Option<WireUuid>,
        #[prost(map = "string, string", tag = "2")]
        pub(in super::super) metadata: HashMap<String, String>,
        #[prost(bytes = "bytes", tag = "3")]
        pub(in super::super) custom_metadata: Bytes,
        #[prost(bytes = "bytes", tag = "4")]
        pub(in super::super) data: Bytes,
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AppendResp {
    #[prost(oneof = "append_resp::Outcome", tags = "1, 2")]
    pub(super) outcome: Option<append_resp::Outcome>,
}

pub(super) mod append_resp {
    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub(in super::super) enum Outcome {
        #[prost(message, tag = "1")]
        Success(Success),
        #[prost(message, tag = "2")]
        WrongExpectedVersion(WrongExpectedVersion),
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(in super::super) struct Success {
        #[prost(uint64, optional, tag = "1")]
        pub(in super::super) current_revision: Option<u64>,
        #[prost(message, optional, tag = "3")]
        pub(in super::super) position: Option<LogPosition>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(in super::super) struct LogPosition {
        #[prost(uint64, tag = "1")]
        pub(in super::super) commit: u64,
        #[prost(uint64, tag = "2")]
        pub(in super::super) prepare: u64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(in super::super) struct WrongExpectedVersion {
        #[prost(oneof = "Current", tags = "6, 7")]
        pub(in super::super) current: Option<Current>,
        #[prost(oneof = "Expected", tags = "8, 9, 10, 11")]
        pub(in super::super) expected: Option<Expected>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub(in super::super) enum Current {
        #[prost(uint64, tag = "6")]
        Revision(u64),
        #[prost(message, tag = "7")]
        NoStream(()),
    }

    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub(in super::super) enum Expected {
        #[prost(uint64, tag = "8")]
        Revision(u64),
        #[prost(message, tag = "9")]
        Any(()),
        #[prost(message, tag = "10")]
        StreamExists(()),
        #[prost(message, tag = "11")]
        NoStream(()),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadReq {
    #[prost(message, optional, tag = "1")]
    pub(super) options: Option<read_req::Options>,
}

pub(super) mod read_req {
    use super::StreamIdentifier;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct Options {
        #[prost(message, optional, tag = "1")]
        pub(in super::super) stream: Option<StreamOptions>,
        /// 0 forwards, 1 backwards.
        #[prost(int32, tag = "3")]
        pub(in super::super) direction: i32,
        #[prost(uint64, tag = "5")]
        pub(in super::super) count: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct StreamOptions {
        #[prost(message, optional, tag = "1")]
        pub(in super::super) stream: Option<StreamIdentifier>,
        #[prost(oneof = "From", tags = "2, 3, 4")]
        pub(in super::super) from: Option<From>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub(in super::super) enum From {
        #[prost(uint64, tag = "2")]
        Revision(u64),
        #[prost(message, tag = "3")]
        Start(()),
        #[prost(message, tag = "4")]
        End(()),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadResp {
    #[prost(oneof = "read_resp::Content", tags = "1, 4")]
    pub(super) content: Option<read_resp::Content>,
}

pub(super) mod read_resp {
    use super::{Bytes, HashMap, StreamIdentifier, WireUuid};

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in super::super) enum Content {
        #[prost(message, tag = "1")]
        Event(ReadEvent),
        #[prost(message, tag = "4")]
        StreamNotFound(StreamNotFound),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct ReadEvent {
        #[prost(message, optional, tag = "1")]
        pub(in super::super) event: Option<Recorded>,
        #[prost(uint64, optional, tag = "3")]
        pub(in super::super) commit_position: Option<u64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct Recorded {
        #[prost(message, optional, tag = "1")]
        pub(in super::super) id: Option<WireUuid>,
        #[prost(message, optional, tag = "2")]
        pub(in super::super) stream: Option<StreamIdentifier>,
        #[prost(uint64, tag = "3")]
        pub(in super::super) revision: u64,
        #[prost(uint64, tag = "4")]
        pub(in super::super) prepare: u64,
        #[prost(uint64, tag = "5")]
        pub(in super::super) commit: u64,
        #[prost(map = "string, string", tag = "6")]
        pub(in super::super) metadata: HashMap<String, String>,
        #[prost(bytes = "bytes", tag = "7")]
        pub(in super::super) custom_metadata: Bytes,
        #[prost(bytes = "bytes", tag = "8")]
        pub(in super::super) data: Bytes,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct StreamNotFound {
        #[prost(message, optional, tag = "1")]
        pub(in super::super) stream: Option<StreamIdentifier>,
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SupportedMethods {
    #[prost(message, repeated, tag = "1")]
    pub(super) methods: Vec<SupportedMethod>,
    #[prost(string, tag = "2")]
    pub(super) server_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SupportedMethod {
    #[prost(string, tag = "1")]
    pub(super) method: String,
    #[prost(string, tag = "2")]
    pub(super) service: String,
}
