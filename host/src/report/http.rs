//! A server of answers to GET and HEAD on loopback, an answer a connection. Every connection has ten seconds for its request, whose
//! head may take 16 KiB, and as long for each part of the answer that it takes; there are at most 64 at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

/// Connections at a time.
const CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;
/// For a request, and for each part of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every answer says: a page runs its own scripts and shows its own pictures, and nothing of another site's, nor in one.
const HEADERS: [(&str, &str); 4] = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data: blob:; \
         connect-src 'self'; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
];

/// An answer.
pub struct Answer {
    pub status: u16,
    /// `Content-Type`, or of a redirection where to.
    pub kind: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A sentence.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Answer { status, kind: "text/plain; charset=utf-8".into(), body: body.into().into_bytes() }
    }
}

/// What is asked for, and where the answer goes.
pub struct Question {
    pub path: String,
    answer: SyncSender<Answer>,
}

impl Question {
    /// Answers; whoever has gone away meanwhile is no failure.
    pub fn answer(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

/// The server: its connections ask, and who holds it answers.
pub struct Server {
    address: SocketAddr,
    questions: Receiver<Question>,
}

impl Server {
    /// Listens on loopback; 0 takes a free port.
    pub fn open(port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let address = listener.local_addr()?;
        let (ask, questions) = channel();
        let open = Arc::new(AtomicUsize::new(0));
        std::thread::Builder::new().spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // Too many descriptors, say: later there may be some.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                };
                if stream.set_write_timeout(Some(PATIENCE)).is_err() {
                    continue;
                }
                if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
                    open.fetch_sub(1, Ordering::SeqCst);
                    // It fits into the socket's own memory, so that this waits for nobody.
                    let _ = write(&stream, &Answer::text(503, "too many connections"), true);
                    continue;
                }
                let (ask, count) = (ask.clone(), open.clone());
                let started = std::thread::Builder::new().spawn(move || {
                    let _ = serve(&stream, &ask);
                    count.fetch_sub(1, Ordering::SeqCst);
                });
                if started.is_err() {
                    open.fetch_sub(1, Ordering::SeqCst);
                }
            }
        })?;
        Ok(Server { address, questions })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next question, where there is one within this time.
    pub fn next(&self, wait: Duration) -> Option<Question> {
        self.questions.recv_timeout(wait).ok()
    }
}

/// Reads a request's head; none where it takes too long or too much, or the other side has gone.
fn head(mut stream: &TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let (mut bytes, mut part) = (Vec::new(), [0u8; 2048]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || bytes.len() > HEAD {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(None),
            Ok(n) => bytes.extend(&part[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&e.kind()) => return Ok(None),
            Err(e) => return Err(e),
        }
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            bytes.truncate(end + 4);
            return Ok(Some(bytes));
        }
    }
}

/// Method, path and host of a head; none where it is no request.
fn parse(head: &[u8]) -> Option<(String, String, Option<String>)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).ok()?;
    let host = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("host"));
    let host = host.map(|h| String::from_utf8_lossy(h.value).into_owned());
    Some((request.method?.into(), request.path?.into(), host))
}

/// A page of another site may send its user's browser here; only what is addressed to loopback is answered.
fn is_local(host: Option<&str>) -> bool {
    host.is_none_or(|h| {
        let name = h.rsplit_once(':').map_or(h, |(name, _)| name);
        ["127.0.0.1", "localhost", "[::1]"].contains(&name)
    })
}

fn serve(stream: &TcpStream, ask: &std::sync::mpsc::Sender<Question>) -> std::io::Result<()> {
    let Some(head) = head(stream)? else {
        return write(stream, &Answer::text(408, "a request of at most 16 KiB within ten seconds was expected"), true);
    };
    let Some((method, path, host)) = parse(&head) else {
        return write(stream, &Answer::text(400, "this is no request"), true);
    };
    let whole = method == "GET";
    if !whole && method != "HEAD" {
        return write(stream, &Answer::text(405, "GET or HEAD expected"), true);
    }
    if !is_local(host.as_deref()) {
        return write(stream, &Answer::text(404, "there is nothing of this name"), whole);
    }
    let (answer, answered) = sync_channel(1);
    let asked = ask.send(Question { path, answer }).is_ok();
    match answered.recv().ok().filter(|_| asked) {
        Some(answer) => write(stream, &answer, whole),
        None => write(stream, &Answer::text(503, "the server ends"), whole),
    }
}

fn write(mut stream: &TcpStream, answer: &Answer, whole: bool) -> std::io::Result<()> {
    let reason = match answer.status {
        200 => "OK",
        301 => "Moved Permanently",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let mut head = format!(
        "HTTP/1.1 {} {reason}\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in HEADERS {
        head += &format!("{name}: {value}\r\n");
    }
    match answer.status {
        301 => head += &format!("Location: {}\r\n\r\n", answer.kind),
        405 => head += &format!("Allow: GET, HEAD\r\nContent-Type: {}\r\n\r\n", answer.kind),
        _ => head += &format!("Content-Type: {}\r\n\r\n", answer.kind),
    }
    stream.write_all(head.as_bytes())?;
    if whole {
        stream.write_all(&answer.body)?;
    }
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every path with it.
    fn echo() -> SocketAddr {
        let server = Server::open(0).unwrap();
        let address = server.address();
        std::thread::spawn(move || {
            while let Some(question) = server.next(Duration::from_secs(60)) {
                let path = question.path.clone();
                question.answer(Answer::text(200, path));
            }
        });
        address
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(request.as_bytes());
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn get_and_head_are_answered_and_nothing_else() {
        let address = echo();
        let found = ask(address, "GET /a/b?c HTTP/1.1\r\nHost: localhost:1\r\n\r\n");
        assert!(found.starts_with("HTTP/1.1 200 OK\r\n") && found.ends_with("\r\n\r\n/a/b?c"), "{found}");
        assert!(found.contains("nosniff") && found.contains("default-src 'none'"));
        let found = ask(address, "HEAD /a HTTP/1.1\r\n\r\n");
        assert!(found.contains("Content-Length: 2\r\n") && found.ends_with("\r\n\r\n"), "{found}");
        for (request, status) in [
            ("POST / HTTP/1.1\r\n\r\n", "405"),
            ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "404"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            assert!(ask(address, request).starts_with(&format!("HTTP/1.1 {status} ")), "{request}");
        }
        // A head without end.
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(HEAD + 4096));
        let found = ask(address, &long);
        assert!(found.is_empty() || found.starts_with("HTTP/1.1 408 "), "{found}");
    }

    #[test]
    fn connections_that_say_nothing_do_not_starve_the_others() {
        let address = echo();
        let idle: Vec<TcpStream> = (0..CONNECTIONS - 1).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(ask(address, "GET /x HTTP/1.1\r\n\r\n").ends_with("/x"));
        // One more than there may be is told so, and does not wait. The one before has been let go.
        std::thread::sleep(Duration::from_millis(300));
        let last = TcpStream::connect(address).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let (mut text, mut more) = (String::new(), TcpStream::connect(address).unwrap());
        more.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        more.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        drop((idle, last));
        // Pipelined requests have one answer.
        std::thread::sleep(Duration::from_millis(200));
        let many = "GET /z HTTP/1.1\r\n\r\n".repeat(1000);
        assert_eq!(ask(address, &many).matches("HTTP/1.1 200").count(), 1);
    }
}
