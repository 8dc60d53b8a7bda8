//! What real clients sent first, recorded with a listener that answers nothing.

use proptest::prelude::*;

use super::*;

/// openssl s_client 3.0.
const OPENSSL: &str = "160301013b010001370303b647b45573b0a7d41cc740a733e1dff59571ffcd1f24709e76aa98279c95a8dd20934fffe51cf85f2de8c43a\
        ce36a99acd07177918a76c00df4e08c5495f0787f1003e130213031301c02cc030009fcca9cca8ccaac02bc02f009ec024c028006bc023\
        c0270067c00ac0140039c009c0130033009d009c003d003c0035002f00ff010000b000000013001100000e44622e4578616d706c652e6f\
        7267000b000403000102000a00160014001d0017001e0019001801000101010201030104002300000016000000170000000d002a002804\
        0305030603080708080809080a080b080408050806040105010601030303010302040205";
/// curl 7.88, https.
const CURL_TLS: &str = "1603010200010001fc0303a9af32aa5346ac50b2d7c9846211a800c070df2d4cb685bb3d9b8f48abad25bf2059d3c2febd5d658447ace7\
        cb4fc1c7a20514c83480b6b0fa157b6e4cacbd9717003e130213031301c02cc030009fcca9cca8ccaac02bc02f009ec024c028006bc023\
        c0270067c00ac0140039c009c0130033009d009c003d003c0035002f00ff0100017500000014001200000f6170692e6578616d706c652e\
        6e6574000b000403000102000a00160014001d0017001e00190018010001010102010301040010000e000c02683208687474702f312e31\
        001600000017000000310000000d002a0028040305030603080708080809080a080b0804";
/// curl 7.88.
const CURL: &str = "474554202f706174683f783d3120485454502f312e310d0a486f73743a2053686f702e4578616d706c652e6f72673a383038300d0a5573\
        65722d4167656e743a206375726c2f372e38382e310d0a4163636570743a202a2f2a0d0a0d0a";
/// curl 7.88 with prior knowledge.
const CURL_HTTP2: &str = "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a00001204000000000000030000006400040200000000020000000000000408\
        000000000001ff000100001f010500000001828486418b089d5c0b8170dc0ba0033f7a8825b650c3abbcf2e153032a2f2a";
/// psql 15, sslmode=require.
const PSQL_TLS: &str = "0000000804d2162f";
/// psql 15, without TLS.
const PSQL: &str = "00000031000300007573657200750064617461626173650064006170706c69636174696f6e5f6e616d65007073716c0000";
/// redis-cli 7.0.
const REDIS_CLI: &str = "2a330d0a24330d0a5345540d0a24310d0a610d0a24310d0a620d0a";
/// redis-py 6.
const REDIS_PY: &str = "2a320d0a24350d0a48454c4c4f0d0a24310d0a330d0a";
/// kafka-python 2.
const KAFKA: &str =
    "00000026001200040000000100066f7264657273000d6b61666b612d707974686f6e07332e302e313200";
/// pymongo 4.
const MONGODB: &str = "4a01000067458b6b00000000dd0700000000000000350100001069736d617374657200010000000868656c6c6f4f6b0001026261636b70\
        726573737572650002000000320003636c69656e7400ed00000003647269766572002e000000026e616d65000a00000050794d6f6e676f\
        7c63000276657273696f6e0008000000342e32302e307c0000036f73005b000000027479706500060000004c696e757800026e616d6500\
        060000004c696e7578000261726368697465637475726500070000007838365f3634000276657273696f6e0010000000362e31382e3434\
        2d66632d76363537000002706c6174666f726d001700000043507974686f6e20332e3131";
/// pika 1.
const AMQP: &str = "414d515000000901";
/// The greeting of MySQL 8.0, up to its first scramble.
const MYSQL_GREETING: &[u8] =
    b"\x4a\x00\x00\x00\x0a8.0.35\0\x08\x00\x00\x00abcdefgh\0\xff\xff\xff\x02\x00";
/// `dig +tcp example.org AAAA`: recursion desired, authentic data, one question, EDNS.
const DIG: &[u8] = b"\x00\x28\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01\x07example\x03org\x00\x00\x1c\x00\x01\
    \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

fn spoken(client: &[u8], server: &[u8]) -> Application {
    detect(client, server).0
}

#[test]
fn real_clients_are_recognised() {
    for (sample, application) in [
        (OPENSSL, Application::Tls),
        (CURL_TLS, Application::Tls),
        (CURL, Application::Http1),
        (CURL_HTTP2, Application::Http2),
        (PSQL_TLS, Application::Postgres),
        (PSQL, Application::Postgres),
        (REDIS_CLI, Application::Redis),
        (REDIS_PY, Application::Redis),
        (KAFKA, Application::Kafka),
        (MONGODB, Application::Mongodb),
        (AMQP, Application::Amqp),
    ] {
        assert_eq!(spoken(&bytes(sample), b""), application, "{sample}");
    }
    assert_eq!(spoken(DIG, b""), Application::Dns);
}

#[test]
fn a_server_that_speaks_first_is_recognised() {
    assert_eq!(spoken(b"", MYSQL_GREETING), Application::Mysql);
    assert_eq!(spoken(b"", b"HTTP/1.1 200 OK\r\n"), Application::Http1);
    assert_eq!(spoken(b"PING\r\n", b"+PONG\r\n"), Application::Redis);
    // A mail server also takes commands on lines.
    assert_eq!(
        spoken(b"HELO me\r\n", b"220 mail\r\n"),
        Application::Unknown
    );
    assert_eq!(
        spoken(b"", b"SSH-2.0-OpenSSH_9.2\r\n"),
        Application::Unknown
    );
}

#[test]
fn a_kafka_request_that_is_not_the_first_needs_its_answer() {
    // Metadata, version 5, correlation 77, client `web`.
    let request =
        b"\x00\x00\x00\x14\x00\x03\x00\x05\x00\x00\x00\x4d\x00\x03web\x00\x00\x00\x00\x01";
    let answer = b"\x00\x00\x00\x40\x00\x00\x00\x4d\x00\x00";
    assert_eq!(spoken(request, b""), Application::Unknown);
    assert_eq!(spoken(request, answer), Application::Kafka);
    assert_eq!(
        spoken(request, b"\x00\x00\x00\x40\x00\x00\x00\x4e\x00\x00"),
        Application::Unknown
    );
}

#[test]
fn a_server_that_reads_a_header_first_is_known_by_its_answer() {
    let greeting = bytes(OPENSSL);
    let header = &greeting[..5];
    let answer = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03";
    assert_eq!(spoken(header, answer), Application::Tls);
    assert_eq!(spoken(header, b""), Application::Unknown);
    assert_eq!(spoken(header, b"HTTP"), Application::Unknown);
    // An alert in place of a greeting, and bytes of a client that are no greeting.
    assert_eq!(
        spoken(header, b"\x15\x03\x03\x00\x02\x02\x28"),
        Application::Unknown
    );
    assert_eq!(
        spoken(&[header, &[2]].concat(), answer),
        Application::Unknown
    );
    assert_eq!(spoken(b"", answer), Application::Unknown);
}

#[test]
fn the_server_is_named_by_the_client() {
    let name = |client: &[u8]| {
        detect(client, b"")
            .1
            .map(|named| (named.name, named.source))
    };
    assert_eq!(
        name(&bytes(OPENSSL)),
        Some(("db.example.org".into(), NameSource::Sni))
    );
    assert_eq!(
        name(&bytes(CURL_TLS)),
        Some(("api.example.net".into(), NameSource::Sni))
    );
    assert_eq!(
        name(&bytes(CURL)),
        Some(("shop.example.org".into(), NameSource::HttpHost))
    );
    // An address is none, nor is what no host is called, nor what is cut.
    assert_eq!(name(b"GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n"), None);
    assert_eq!(name(b"GET / HTTP/1.1\r\nHost: a\x1b[2Jb\r\n\r\n"), None);
    assert_eq!(name(b"GET / HTTP/1.1\r\nHost: shop.exam"), None);
    assert_eq!(name(&bytes(OPENSSL)[..150]), None);
}

#[test]
fn almost_is_not() {
    for other in [
        &b""[..],
        b"\x16\x03",
        b"GET\tx",
        b"GETTING STARTED",
        b"*hello*",
        b"hello, world\r\n",
        b"\x00\x00\x00\x08\x00\x00\x00\x00",
        &[0; 256],
        &[0xff; 256],
    ] {
        assert_eq!(spoken(other, b""), Application::Unknown, "{other:?}");
        assert_eq!(spoken(other, other), Application::Unknown, "{other:?}");
    }
}

proptest! {
    #[test]
    fn strangers_bytes_do_no_harm(
        client in prop::collection::vec(any::<u8>(), 0..256),
        server in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let (application, named) = detect(&client, &server);
        prop_assert!(named.is_none() || application != Application::Unknown);
    }

    /// Cut and damaged samples go through every parser.
    #[test]
    fn damaged_samples_do_no_harm(which in 0_usize..11, at in 0_usize..256, value in any::<u8>(), cut in 0_usize..256) {
        let all = [OPENSSL, CURL_TLS, CURL, CURL_HTTP2, PSQL_TLS, PSQL, REDIS_CLI, REDIS_PY, KAFKA, MONGODB, AMQP];
        let mut sample = bytes(all[which]);
        let length = sample.len();
        sample[at % length] = value;
        sample.truncate(cut);
        let _ = detect(&sample, &sample);
    }
}
