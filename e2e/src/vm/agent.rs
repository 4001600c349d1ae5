//! The harness's end of the line to the agent.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::guest::{Reply, Request, decode_lengths, encode};

use super::BOOT_DEADLINE;

/// The reply to the greeting has no request; it is waited for under this number.
const GREETING: u64 = 0;

/// After a kill, how long a script may take to be gone. One that waits for a dead disk cannot be killed.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// How a script ended and what it said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Absent when a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "ended with code {code}")?,
            None => f.write_str("was killed")?,
        }
        write!(f, "\nstderr: {}\nstdout: {}", self.stderr_text().trim_end(), self.stdout_text().trim_end())
    }
}

/// A reply and its body.
type Answer = (Reply, Vec<u8>);

#[derive(Default)]
struct Waiting {
    next_id: u64,
    /// Bounded by the callers, who each wait for their answer.
    replies: HashMap<u64, oneshot::Sender<Answer>>,
    /// Why no more answers will come.
    broken: Option<String>,
}

pub(super) struct AgentClient {
    waiting: Arc<Mutex<Waiting>>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    reader: JoinHandle<()>,
    greeting: Mutex<Option<oneshot::Receiver<Answer>>>,
}

impl AgentClient {
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).await.with_context(|| format!("connect to {}", socket.display()))?;
        let (from, to) = stream.into_split();
        let (sender, greeting) = oneshot::channel();
        let waiting = Waiting { next_id: 1, replies: HashMap::from([(GREETING, sender)]), broken: None };
        let waiting = Arc::new(Mutex::new(waiting));
        let reader = tokio::spawn(dispatch(from, waiting.clone()));
        Ok(Self {
            waiting,
            writer: tokio::sync::Mutex::new(to),
            reader,
            greeting: Mutex::new(Some(greeting)),
        })
    }

    /// Waits for the agent's greeting.
    pub(super) async fn ready(&self) -> Result<Reply> {
        let greeting = self.greeting.lock().expect("no holder of this lock panics").take();
        let greeting = greeting.context("the greeting was waited for before")?;
        match tokio::time::timeout(BOOT_DEADLINE, greeting).await {
            Ok(Ok((reply, _))) => Ok(reply),
            Ok(Err(_)) => bail!("{}", self.why_broken()),
            Err(_) => bail!("the agent did not greet within {BOOT_DEADLINE:?}"),
        }
    }

    pub(super) async fn run(&self, deadline: Duration, script: &str, input: &[u8]) -> Result<Output> {
        let (sender, mut receiver) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if let Some(why) = &waiting.broken {
                bail!("{why}");
            }
            let id = waiting.next_id;
            waiting.next_id += 1;
            waiting.replies.insert(id, sender);
            id
        };
        self.send(&Request::Run { id, script: script.to_owned() }, input).await?;
        let Ok(reply) = tokio::time::timeout(deadline, &mut receiver).await else {
            self.send(&Request::Kill { id }, &[]).await?;
            let output = tokio::time::timeout(KILL_DEADLINE, receiver).await;
            let output = match output {
                Ok(reply) => self.output(reply)?.to_string(),
                Err(_) => "could not be killed either".to_owned(),
            };
            bail!("it took longer than {deadline:?}, and {output}");
        };
        self.output(reply)
    }

    fn output(&self, reply: Result<Answer, oneshot::error::RecvError>) -> Result<Output> {
        match reply {
            Ok((Reply::Done { code, stdout_bytes, .. }, mut stdout)) => {
                let stderr = stdout.split_off(stdout_bytes.min(stdout.len()));
                Ok(Output { code, stdout, stderr })
            }
            Ok((Reply::Ready { .. }, _)) => bail!("the agent started anew"),
            Err(_) => bail!("{}", self.why_broken()),
        }
    }

    async fn send(&self, request: &Request, body: &[u8]) -> Result<()> {
        let bytes = encode(request, body).context("encode the request")?;
        self.writer.lock().await.write_all(&bytes).await.context("write to the agent")
    }

    fn why_broken(&self) -> String {
        lock(&self.waiting).broken.clone().unwrap_or_else(|| "the agent's line was closed".to_owned())
    }
}

impl Drop for AgentClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Hands every reply to who waits for it, until the line breaks; then everybody is told.
async fn dispatch(mut from: OwnedReadHalf, waiting: Arc<Mutex<Waiting>>) {
    let error = loop {
        match read_reply(&mut from).await {
            Ok((reply, body)) => {
                let id = match reply {
                    Reply::Ready { .. } => GREETING,
                    Reply::Done { id, .. } => id,
                };
                if let Some(sender) = lock(&waiting).replies.remove(&id) {
                    // Who asked may have given up; the answer is then for nobody.
                    sender.send((reply, body)).ok();
                }
            }
            Err(error) => break error,
        }
    };
    let mut waiting = lock(&waiting);
    waiting.broken = Some(format!("the line to the agent broke: {error:#}"));
    waiting.replies.clear();
}

async fn read_reply(from: &mut OwnedReadHalf) -> Result<Answer> {
    let mut lengths = [[0; 4]; 2];
    from.read_exact(lengths.as_flattened_mut()).await.context("read the lengths of a reply")?;
    let (header_len, body_len) = decode_lengths(lengths)?;
    let mut header = vec![0; header_len];
    from.read_exact(&mut header).await.context("read the header of a reply")?;
    let mut body = vec![0; body_len];
    from.read_exact(&mut body).await.context("read the body of a reply")?;
    Ok((serde_json::from_slice(&header).context("understand a reply")?, body))
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().expect("no holder of this lock panics")
}
