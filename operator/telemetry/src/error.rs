use std::error::Error;

/// An error and its causes in one line. What an error already says of its cause is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("read the table")]
        Read(#[source] io::Error),
        #[error("read the table: {0}")]
        Worded(#[source] io::Error),
    }

    #[test]
    fn every_cause_is_named_once() {
        let cause = || io::Error::other("the disk is gone");
        for error in [Failed::Read(cause()), Failed::Worded(cause())] {
            assert_eq!(chain(&error), "read the table: the disk is gone");
        }
    }
}
