//! Whether the machine is going down, asked of systemd over the system bus: the signal that ends this process does not
//! say whether only its pod is replaced.
//!
//! Two questions are asked, because each alone comes too late or ends too early: logind says so while it lets services
//! that asked for a delay (kubelet) end their pods; systemd says so from when it begins to stop units.
//!
//! The D-Bus specification, "Message Protocol" and "Authentication Protocol", as far as two calls need it.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Limit on each read and write: the bus is local.
const LIMIT: Duration = Duration::from_secs(2);
/// Answers are some hundred bytes.
const MESSAGE_MAX: usize = 64 << 10;
/// Signals that may come before an answer.
const MESSAGES_MAX: usize = 64;

const METHOD_RETURN: u8 = 2;
const METHOD_ERROR: u8 = 3;

/// A property that says so, and how.
struct Question {
    destination: &'static str,
    path: &'static str,
    interface: &'static str,
    property: &'static str,
    yes: Value<'static>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    Boolean(bool),
    Text(&'a str),
}

const QUESTIONS: [Question; 2] = [
    Question {
        destination: "org.freedesktop.login1",
        path: "/org/freedesktop/login1",
        interface: "org.freedesktop.login1.Manager",
        property: "PreparingForShutdown",
        yes: Value::Boolean(true),
    },
    Question {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        property: "SystemState",
        yes: Value::Text("stopping"),
    },
];

/// Whether the machine whose system bus listens at `bus` is going down. An error where nobody could be asked: then it is
/// not known.
pub fn is_going_down(bus: &Path) -> io::Result<bool> {
    let mut bus = Bus::connect(bus)?;
    let mut answered = None;
    for question in &QUESTIONS {
        match bus.ask(question) {
            Ok(true) => return Ok(true),
            Ok(false) => answered = Some(Ok(false)),
            Err(error) => answered = answered.or(Some(Err(error))),
        }
    }
    answered.unwrap_or(Ok(false))
}

struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Bus {
    fn connect(bus: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(bus)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut bus = Self { stream: BufReader::new(stream), serial: 0 };
        // D-Bus specification, "Authentication Protocol": a nul byte first, then EXTERNAL with the user's id, each digit in hex.
        let id: String = nix::unistd::geteuid().to_string().chars().flat_map(|digit| ['3', digit]).collect();
        bus.send(format!("\0AUTH EXTERNAL {id}\r\n").as_bytes())?;
        let mut line = String::new();
        (&mut bus.stream).take(1024).read_line(&mut line)?;
        if !line.starts_with("OK ") {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, line.trim().to_owned()));
        }
        bus.send(b"BEGIN\r\n")?;
        let hello = Question {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            property: "Hello",
            yes: Value::Boolean(true),
        };
        bus.call(&hello, hello.interface, hello.property, &[])?;
        Ok(bus)
    }

    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        let names = [question.interface, question.property];
        let body = self.call(question, "org.freedesktop.DBus.Properties", "Get", &names)?;
        variant(&body).map(|value| value == question.yes).ok_or_else(|| invalid("no property in the answer"))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Calls a method with texts; returns the body of the answer.
    fn call(&mut self, to: &Question, interface: &str, member: &str, texts: &[&str]) -> io::Result<Vec<u8>> {
        self.serial += 1;
        let message = method_call(self.serial, to, interface, member, texts);
        self.send(&message)?;
        for _ in 0..MESSAGES_MAX {
            let (kind, reply_to, body) = self.receive()?;
            match kind {
                METHOD_RETURN if reply_to == Some(self.serial) => return Ok(body),
                METHOD_ERROR if reply_to == Some(self.serial) => {
                    let said = Reader::new(&body).text().unwrap_or("no reason given").to_owned();
                    return Err(io::Error::other(said));
                }
                // A signal, for others.
                _ => {}
            }
        }
        Err(invalid("no answer among many messages"))
    }

    /// A message: its kind, what it answers, its body.
    fn receive(&mut self) -> io::Result<(u8, Option<u32>, Vec<u8>)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let [order, kind, ..] = head;
        if order != b'l' {
            // Daemons answer in the order of the machine, which is ours.
            return Err(invalid("an answer in another byte order"));
        }
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (body_len, fields_len) = (word(4), word(12));
        if body_len > MESSAGE_MAX || fields_len > MESSAGE_MAX {
            return Err(invalid("an answer that is too long"));
        }
        let mut fields = vec![0; fields_len.next_multiple_of(8)];
        self.stream.read_exact(&mut fields)?;
        let mut body = vec![0; body_len];
        self.stream.read_exact(&mut body)?;
        Ok((kind, reply_serial(&fields[..fields_len]), body))
    }
}

/// D-Bus specification, "Message Format": header, fields, and texts as the body.
fn method_call(serial: u32, to: &Question, interface: &str, member: &str, texts: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for text in texts {
        pad(&mut body, 4);
        put_text(&mut body, text);
    }
    let mut fields = Vec::new();
    // Codes: "Header Fields".
    for (code, kind, text) in
        [(1, b'o', to.path), (2, b's', interface), (3, b's', member), (6, b's', to.destination)]
    {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        put_text(&mut fields, text);
    }
    if !texts.is_empty() {
        pad(&mut fields, 8);
        fields.extend([8, 1, b'g', 0]);
        let signature = vec![b's'; texts.len()];
        fields.extend(u8::try_from(signature.len()));
        fields.extend(signature);
        fields.push(0);
    }
    let mut message = vec![b'l', 1, 0, 1];
    message.extend(len(&body).to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend(len(&fields).to_le_bytes());
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("messages of ours are short")
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(len(text.as_bytes()).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// The serial that a message answers, of its fields.
fn reply_serial(fields: &[u8]) -> Option<u32> {
    let mut fields = Reader::new(fields);
    loop {
        fields.align(8);
        let code = fields.byte()?;
        match (code, fields.signature()?) {
            (5, b"u") => return fields.word(),
            (_, b"u") => drop(fields.word()?),
            (_, b"s" | b"o") => drop(fields.text()?),
            (_, b"g") => drop(fields.signature()?),
            _ => return None,
        }
    }
}

fn variant(body: &[u8]) -> Option<Value<'_>> {
    let mut body = Reader::new(body);
    match body.signature()? {
        b"b" => Some(Value::Boolean(body.word()? != 0)),
        b"s" => body.text().map(Value::Text),
        _ => None,
    }
}

/// Reads what is aligned to its own start.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn word(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let count = self.word()? as usize;
        let text = self.take(count)?;
        self.take(1)?;
        std::str::from_utf8(text).ok()
    }

    fn signature(&mut self) -> Option<&'a [u8]> {
        let count = self.byte()?.into();
        let signature = self.take(count)?;
        self.take(1)?;
        Some(signature)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A bus on which logind and systemd give these answers.
    fn bus(preparing: bool, state: &'static str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            for reply in ["OK 1234deadbeef\r\n", ""] {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                stream.get_mut().write_all(reply.as_bytes()).unwrap();
            }
            let mut bus = Bus { stream, serial: 0 };
            for number in 1.. {
                let Ok(_) = bus.receive() else { return };
                let mut body = Vec::new();
                match number {
                    1 => put_text(&mut body, ":1.7"),
                    2 => {
                        body.extend([1, b'b', 0, 0]);
                        body.extend(u32::from(preparing).to_le_bytes());
                    }
                    _ => {
                        body.extend([1, b's', 0, 0]);
                        put_text(&mut body, state);
                    }
                }
                // Somebody else's signal comes first.
                bus.send(&message(4, 999, &[])).unwrap();
                bus.send(&message(METHOD_RETURN, number, &body)).unwrap();
            }
        });
        (folder, path)
    }

    fn message(kind: u8, reply_to: u32, body: &[u8]) -> Vec<u8> {
        let mut fields = vec![5, 1, b'u', 0];
        fields.extend(reply_to.to_le_bytes());
        let mut message = vec![b'l', kind, 0, 1];
        message.extend(len(body).to_le_bytes());
        message.extend(7_u32.to_le_bytes());
        message.extend(len(&fields).to_le_bytes());
        message.extend(fields);
        message.extend(body);
        message
    }

    #[test]
    fn a_machine_goes_down_when_logind_or_systemd_says_so() {
        for (preparing, state, expected) in [
            (false, "running", false),
            (false, "degraded", false),
            (true, "running", true),
            (false, "stopping", true),
        ] {
            let (_folder, path) = bus(preparing, state);
            assert_eq!(is_going_down(&path).unwrap(), expected, "{preparing} {state}");
        }
    }

    #[test]
    fn without_a_bus_it_is_not_known() {
        assert!(is_going_down(Path::new("/nonexistent/bus")).is_err());
    }

    /// As `busctl --system get-property` puts it on the wire.
    #[test]
    fn a_call_is_written_as_the_specification_has_it() {
        let call = method_call(2, &QUESTIONS[0], "org.freedesktop.DBus.Properties", "Get", &["a.b", "C"]);
        assert_eq!(call[..16], [b'l', 1, 0, 1, 14, 0, 0, 0, 2, 0, 0, 0, 0x80, 0, 0, 0]);
        assert_eq!(call.len() % 8, 14 % 8, "fields end at a multiple of eight");
        assert_eq!(call[call.len() - 14..], *b"\x03\0\0\0a.b\0\x01\0\0\0C\0");
    }
}
