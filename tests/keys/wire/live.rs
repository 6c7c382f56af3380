//! Both ends of the wire as they are, each against the bytes of the golden messages; and how those are made.

use std::{
    fs::OpenOptions,
    sync::{Arc, Mutex, PoisonError},
};

use coffer::{
    key::service::{KeyFailure, Refusal},
    keyservice::{
        audit::Audit,
        client::{Address, Remote},
        hpke::{SealedDek, Sealer},
        server::Server,
    },
    proto::keyservice::{
        CreateKeyRequest, DescribeKeyResponse, DestroyKeyRequest, GetKeyRequest, GetKeyResponse, ListKeysResponse,
        MarkReadyRequest, key_service_server::KeyServiceServer,
    },
    secret::Dek,
    volume::hex,
};
use prost::Message;
use tonic::{Code, Status};

use super::{
    Golden, all, golden, newer, raw, read, same,
    scripted::{Asked, Said, Scripted, VOLUME, asked, hpke_golden, said},
};
use crate::{id, vectors};

/// Every RPC, with a golden request and a golden answer to it.
const CALLS: [(&str, &str, &str); 11] = [
    ("CreateKey", "create-request", "create-response"),
    ("CreateKey", "create-request-least", "create-response-least"),
    ("GetKey", "get-request", "get-response"),
    ("DescribeKey", "describe-request", "describe-response"),
    ("DescribeKey", "describe-request", "describe-response-none"),
    ("DescribeKey", "describe-request", "describe-response-destroyed"),
    ("BeginFormat", "begin-format-request", "begin-format-response"),
    ("MarkReady", "mark-ready-request", "mark-ready-response"),
    ("DestroyKey", "destroy-request", "destroy-response"),
    ("ListKeys", "list-request-first", "list-response-first"),
    ("ListKeys", "list-request-last", "list-response-last"),
];

/// What is another one each time ends a message of GetKey: a public key the request, and a sealed DEK the answer, whose
/// encapsulated key is before it, with two bytes between.
const PUBLIC_KEY: usize = 32;
const SEALED_DEK: usize = 48;
const SEALED: usize = PUBLIC_KEY + 2 + SEALED_DEK;

/// What a client of this version writes for a request, and what it understands of the answer.
async fn client(
    rpc: &str,
    asked: Asked,
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> (Vec<u8>, Result<Said, KeyFailure>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let (_folder, path) = raw::serve(move |rpc, request| {
        let mut heard = hears.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push((rpc.to_owned(), request.to_vec()));
        answer(request)
    });
    let understood = asked.of(&Remote::at(Address::Unix(path))).await;
    let mut heard = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    let (called, request) = heard.pop().expect("it asked");
    assert!(called == rpc && heard.is_empty(), "it called {called} and {heard:?}");
    (request, understood)
}

/// What a key service of this version understands of a request, and what it writes for its answer.
async fn service(rpc: &str, request: Vec<u8>, says: Said) -> (Vec<Asked>, Result<Vec<u8>, Status>) {
    let scripted = Arc::new(Scripted { says, heard: Mutex::default() });
    let uid = rustix::process::geteuid().as_raw();
    let server = Server::new(scripted.clone(), Arc::new(Audit::to(std::io::sink())), vec![uid]);
    let (_folder, path, listener) = raw::socket();
    let server = tonic::transport::Server::builder().add_service(KeyServiceServer::new(server));
    tokio::spawn(server.serve_with_incoming(listener));
    let answer = raw::ask(&path, rpc, request).await;
    let heard = std::mem::take(&mut *scripted.heard.lock().unwrap_or_else(PoisonError::into_inner));
    (heard, answer)
}

/// The end of a message whose end is another one each time.
fn end(message: &mut [u8], length: usize) -> &mut [u8] {
    let start = message.len() - length;
    &mut message[start..]
}

/// The golden answer of an RPC, as it is given to this request.
fn golden_answer(rpc: &str, answer: &str, request: &[u8]) -> Vec<u8> {
    let mut answer = golden(answer).bytes();
    if rpc == "GetKey" {
        let public_key = request[request.len() - PUBLIC_KEY..].to_vec();
        let dek = Dek::take(hpke_golden("dek")).expect("32 bytes");
        let sealed = Sealer::new(public_key).expect("a public key").seal(&dek, &id(VOLUME)).expect("it is encrypted");
        let SealedDek { encapsulated_key, ciphertext } = sealed;
        end(&mut answer, SEALED)[..PUBLIC_KEY].copy_from_slice(&encapsulated_key);
        end(&mut answer, SEALED_DEK).copy_from_slice(&ciphertext);
    }
    answer
}

/// A request of GetKey as it is with the golden public key, and any other as it is.
fn with_golden_key(rpc: &str, mut request: Vec<u8>) -> Vec<u8> {
    if rpc == "GetKey" {
        end(&mut request, PUBLIC_KEY).copy_from_slice(&hpke_golden("public_key"));
    }
    request
}

/// An answer of GetKey as it is with the golden sealed DEK, and any other as it is.
fn with_golden_dek(rpc: &str, mut answer: Vec<u8>) -> Vec<u8> {
    if rpc == "GetKey" {
        end(&mut answer, SEALED)[..PUBLIC_KEY].copy_from_slice(&hpke_golden("encapsulated_key"));
        end(&mut answer, SEALED_DEK).copy_from_slice(&hpke_golden("sealed_dek"));
    }
    answer
}

fn decoded<M: Message + Default>(name: &str) -> M {
    M::decode(golden(name).bytes().as_slice()).expect("golden")
}

#[tokio::test]
async fn a_client_writes_the_golden_requests_and_understands_the_golden_answers_and_later_ones() {
    for (rpc, request, answer) in CALLS {
        for as_sent in [same, newer] {
            let say = move |heard: &[u8]| as_sent("Response", &golden_answer(rpc, answer, heard));
            let (written, understood) = client(rpc, asked(request), say).await;
            assert_eq!(hex(&with_golden_key(rpc, written)), golden(request).bytes, "{request}");
            assert_eq!(understood.expect(answer), said(answer), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_key_service_understands_the_golden_requests_and_later_ones_and_writes_the_golden_answers() {
    for (rpc, request, answer) in CALLS {
        for as_sent in [same, newer] {
            let sent = as_sent("Request", &golden(request).bytes());
            let (understood, written) = service(rpc, sent, said(answer)).await;
            assert_eq!(understood, [asked(request)], "{request}");
            let written = with_golden_dek(rpc, written.expect(answer));
            assert_eq!(hex(&written), golden(answer).bytes, "{answer}");
        }
    }
}

#[tokio::test]
async fn a_request_without_what_is_needed_is_refused_by_the_fields_name() {
    let (create, ready) = (decoded::<CreateKeyRequest>("create-request"), decoded("mark-ready-request"));
    for (rpc, field, request) in [
        ("CreateKey", "volume_id", CreateKeyRequest { volume_id: String::new(), ..create.clone() }.encode_to_vec()),
        ("CreateKey", "parameters_json", CreateKeyRequest { parameters_json: String::new(), ..create }.encode_to_vec()),
        ("GetKey", "public_key", GetKeyRequest { volume_id: VOLUME.to_owned(), public_key: vec![] }.encode_to_vec()),
        ("DescribeKey", "volume_id", Vec::new()),
        ("BeginFormat", "volume_id", Vec::new()),
        ("MarkReady", "header_mac", MarkReadyRequest { header_mac: Vec::new(), ..ready }.encode_to_vec()),
        ("DestroyKey", "generation", DestroyKeyRequest { volume_id: VOLUME.to_owned(), generation: 0 }.encode_to_vec()),
    ] {
        let (understood, answer) = service(rpc, request, Said::Destroyed).await;
        let refused = answer.expect_err(field);
        assert_eq!(refused.code(), Code::InvalidArgument, "{rpc} without {field}: {refused:?}");
        assert!(refused.message().contains(field), "{rpc} without {field}: {refused:?}");
        assert!(understood.is_empty(), "{rpc} without {field} was done: {understood:?}");
    }
}

#[tokio::test]
async fn an_answer_that_this_version_cannot_use_is_a_failure_in_words() {
    let key = || decoded::<GetKeyResponse>("get-response");
    let mut state = decoded::<DescribeKeyResponse>("describe-response");
    state.info.as_mut().expect("golden").state = 5;
    let listed = ListKeysResponse { infos: state.info.clone().into_iter().collect(), next: String::new() };
    let unknown = "state is none that this version knows";
    for (rpc, request, answer, words) in [
        ("CreateKey", "create-request", Vec::new(), "lacks its info"),
        ("BeginFormat", "begin-format-request", Vec::new(), "lacks its info"),
        ("GetKey", "get-request", GetKeyResponse { info: None, ..key() }.encode_to_vec(), "lacks its info"),
        ("GetKey", "get-request", GetKeyResponse { sealed_dek: Vec::new(), ..key() }.encode_to_vec(), "does not open"),
        ("GetKey", "get-request", key().encode_to_vec(), "made for another request"),
        ("DescribeKey", "describe-request", state.encode_to_vec(), unknown),
        ("ListKeys", "list-request-first", listed.encode_to_vec(), unknown),
    ] {
        let (_, understood) = client(rpc, asked(request), move |_| answer.clone()).await;
        let failure = understood.expect_err(words);
        assert_eq!(failure.refusal(), Refusal::Fault, "{rpc}: {failure}");
        assert!(failure.to_string().contains(words), "{rpc}: {failure}");
    }
}

/// Makes the golden messages that this version adds, once, when the version is new:
/// `cargo test --test keys -- --ignored make_golden_messages`.
#[tokio::test]
#[ignore = "it writes the golden files"]
async fn make_golden_messages() {
    let mut made: Vec<Golden> = Vec::new();
    let before = all();
    for (rpc, request, answer) in CALLS {
        let (sent, _) = client(rpc, asked(request), |_| Vec::new()).await;
        let sent = with_golden_key(rpc, sent);
        let (_, written) = service(rpc, sent.clone(), said(answer)).await;
        let written = with_golden_dek(rpc, written.expect(answer));
        for (name, message, bytes) in
            [(request, format!("{rpc}Request"), sent), (answer, format!("{rpc}Response"), written)]
        {
            if before.iter().chain(&made).all(|golden| golden.name != name) {
                let (value, _) = read(&message, &bytes);
                made.push(Golden { name: name.to_owned(), message, value, bytes: hex(&bytes) });
            }
        }
    }
    let path = vectors().join("wire").join(concat!(env!("CARGO_PKG_VERSION"), ".json"));
    // What a version has written is never written again.
    let file = OpenOptions::new().write(true).create_new(true).open(path).expect("this version has none yet");
    serde_json::to_writer_pretty(file, &made).expect("written");
}
