//! An HTTP server of which a test writes the answers: it reads and writes at the pace that the test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One request, its body not read yet.
pub struct Exchange<'a> {
    pub method: String,
    pub headers: BTreeMap<String, String>,
    pub reader: &'a mut BufReader<TcpStream>,
}

impl Exchange<'_> {
    pub fn has(&self, header: &str) -> bool {
        self.headers.contains_key(header)
    }

    pub fn length(&self) -> u64 {
        self.headers.get("content-length").map_or(0, |length| length.parse().unwrap())
    }

    pub fn read_body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        let length = self.length();
        self.reader.by_ref().take(length).read_to_end(&mut body).unwrap();
        body
    }

    pub fn write(&mut self, bytes: &[u8]) {
        // A client that has given up is what some tests want.
        let _ = self.reader.get_mut().write_all(bytes);
    }

    pub fn answer(&mut self, status: u16, headers: &str, body: &str) {
        self.write(
            format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
                .as_bytes(),
        );
    }

    /// Answers with an error as S3 does.
    pub fn refuse(&mut self, status: u16, code: &str) {
        let body = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        self.answer(status, "", &body);
    }
}

/// A running server; it ends with the test's process.
pub struct Scripted {
    pub endpoint: String,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    /// Starts a server that hands each request to a function.
    pub fn start(script: impl Fn(Exchange<'_>) + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// Starts a server whose kernel keeps about so many bytes that were not read yet.
    pub fn start_with_buffer(bytes: usize, script: impl Fn(Exchange<'_>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(bytes).unwrap();
        Self::start_on(listener, script)
    }

    fn start_on(listener: TcpListener, script: impl Fn(Exchange<'_>) + Send + Sync + 'static) -> Self {
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, counter) = (Arc::new(script), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                std::thread::spawn(move || converse(stream.unwrap(), &*script));
            }
        });
        Self { endpoint, connections }
    }

    /// Returns how many connections were made so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn converse(stream: TcpStream, script: &dyn Fn(Exchange<'_>)) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let method = line.split(' ').next().unwrap().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        script(Exchange { method, headers, reader: &mut reader });
    }
}
