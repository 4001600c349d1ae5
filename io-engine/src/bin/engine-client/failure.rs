//! What went wrong, why, and what to do next.

use engine_api::{ApiError, ErrorKind};
use serde_json::json;

use crate::arguments::Format;

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was asked for, to stand behind "cannot".
    asked: String,
    error: ApiError,
    endpoint: String,
    /// Next step that the command knows better than the kind of error does.
    next: Option<String>,
}

impl Failure {
    pub(crate) fn new(asked: impl Into<String>, error: ApiError, endpoint: &str) -> Self {
        Self { asked: asked.into(), error, endpoint: endpoint.into(), next: None }
    }

    /// The machine did not let us begin.
    pub(crate) fn start(error: std::io::Error) -> Self {
        Self::new("start", ApiError::internal(error.to_string()), "")
    }

    pub(crate) fn with_next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    fn next(&self) -> String {
        if let Some(next) = &self.next {
            return next.clone();
        }
        let endpoint = &self.endpoint;
        match self.error.kind() {
            ErrorKind::Unavailable => format!(
                "check that an io-engine runs and listens at {endpoint}, or name another with --bind ADDRESS:PORT"
            ),
            ErrorKind::DeadlineExceeded | ErrorKind::Cancelled => {
                "the engine may still carry it out: list what is there before you repeat it, with --timeout SECONDS \
                 for more patience"
                    .into()
            }
            ErrorKind::Fenced => {
                "let the control plane make the change, or repeat with --unfenced if you know that it will not undo it"
                    .into()
            }
            ErrorKind::NotFound | ErrorKind::Gone => {
                "list what there is: `pool list`, `replica list`, `nexus list`".into()
            }
            ErrorKind::AlreadyExists => "choose another name or id, or use what is there".into(),
            ErrorKind::InvalidArgument | ErrorKind::OutOfRange => {
                "correct the arguments; --help shows examples".into()
            }
            ErrorKind::FailedPrecondition => {
                "look at the state with `pool list`, `replica list` or `nexus list`, change what is in the way, \
                 and repeat"
                    .into()
            }
            ErrorKind::ResourceExhausted => {
                "see `pool list` for free space; a thin replica (--thin) takes space at first write".into()
            }
            ErrorKind::Aborted => "another call was in the way: repeat".into(),
            ErrorKind::Unimplemented => "this engine lacks the call; `host info` shows its version".into(),
            ErrorKind::PermissionDenied => "ask whoever runs this engine".into(),
            ErrorKind::DataLoss | ErrorKind::Internal => {
                "see the engine's log of this moment; list what is there before you repeat it".into()
            }
        }
    }

    pub(crate) fn render(&self, format: Format) -> String {
        let Self { asked, error, .. } = self;
        match format {
            Format::Table => format!("error: cannot {asked}: {error}\nnext:  {}\n", self.next()),
            Format::Json => {
                let value = json!({
                    "error": {
                        "asked": asked,
                        "kind": error.kind(),
                        "message": error.context(),
                        "next": self.next(),
                    }
                });
                format!("{value:#}\n")
            }
        }
    }
}
