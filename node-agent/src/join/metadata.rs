//! What a cloud's metadata service says of this machine: the proof in a token's place. Plain HTTP to a link-local address, as
//! the clouds have it.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use weft_wire::identity::{Hidden, Proof};

/// Where AWS and Google have it.
const SERVICE: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)),
    80,
);
/// Longest wait for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// What stands in a token where its secret would be.
pub const AWS: &str = "aws";
/// The same for Google.
pub const GCP: &str = "gcp";

/// The proof that such a token asks for; `None` for one with a secret. `audience` is for whom Google's is good.
pub fn proof(secret: &str, audience: &str) -> Option<Result<Proof>> {
    match secret {
        AWS => Some(aws(SERVICE).map(|text| Proof::Aws(Hidden(text)))),
        GCP => Some(gcp(SERVICE, audience).map(|text| Proof::Gcp(Hidden(text)))),
        _ => None,
    }
}

/// AWS's second version of the service wants a token of its own first.
fn aws(service: SocketAddr) -> Result<String> {
    let ttl = ["X-aws-ec2-metadata-token-ttl-seconds: 60"];
    let token = request(service, "PUT", "/latest/api/token", &ttl)?;
    let token = format!("X-aws-ec2-metadata-token: {}", token.trim());
    let path = "/latest/dynamic/instance-identity/rsa2048";
    request(service, "GET", path, &[token.as_str()])
}

fn gcp(service: SocketAddr, audience: &str) -> Result<String> {
    let path = format!(
        "/computeMetadata/v1/instance/service-accounts/default/identity?audience={audience}&format=full"
    );
    request(service, "GET", &path, &["Metadata-Flavor: Google"])
}

fn request(service: SocketAddr, method: &str, path: &str, headers: &[&str]) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&service, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut text = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\n", service.ip());
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("Content-Length: 0\r\n\r\n");
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
    body(&answer)
}

/// The body of an answer with status 200, which ends with the connection.
fn body(answer: &str) -> Result<String> {
    let nonsense = || Error::new(ErrorKind::InvalidData, "no answer of HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(nonsense)?;
    let status = head.split(' ').nth(1).ok_or_else(nonsense)?;
    if status != "200" {
        let words = format!("the metadata service answered with status {status}");
        return Err(Error::other(words));
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one request after another, and gives what was asked.
    fn service(
        answers: &'static [&'static str],
    ) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let answer = |text: &&str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut one = [0];
                    stream.read_exact(&mut one).unwrap();
                    asked.push(one[0]);
                }
                stream.write_all(text.as_bytes()).unwrap();
                String::from_utf8(asked).unwrap()
            };
            answers.iter().map(answer).collect()
        });
        (address, serving)
    }

    #[test]
    fn aws_is_asked_with_its_token_and_google_for_an_audience() {
        let (at, asked) = service(&[
            "HTTP/1.1 200 OK\r\nServer: EC2ws\r\n\r\nt0k\n",
            "HTTP/1.1 200 OK\r\n\r\nMIAG\nCSqG",
        ]);
        assert_eq!(aws(at).unwrap(), "MIAG\nCSqG");
        let asked = asked.join().unwrap();
        assert!(asked[0].starts_with("PUT /latest/api/token HTTP/1.0\r\n"));
        assert!(
            asked[1].contains("\r\nX-aws-ec2-metadata-token: t0k\r\n"),
            "{}",
            asked[1]
        );
        let (at, asked) = service(&["HTTP/1.0 200 OK\r\n\r\na.b.c"]);
        assert_eq!(gcp(at, "sha256-ab").unwrap(), "a.b.c");
        let asked = asked.join().unwrap();
        assert!(asked[0].contains("audience=sha256-ab&format=full "));
        assert!(asked[0].contains("\r\nMetadata-Flavor: Google\r\n"));
    }

    #[test]
    fn anything_but_200_is_an_error() {
        for text in ["", "HTTP/1.1 404 Not Found\r\n\r\nx", "HTTP/1.1 200 OK"] {
            assert!(body(text).is_err(), "{text:?}");
        }
    }
}
