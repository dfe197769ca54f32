//! Tools that sign in by themselves, with placeholders: npm, pip, and AWS's client for Python. The servers check the real values.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use e2e::{Case, ensure};
use hmac::{Hmac, Mac};
use http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use network::{Body, Handler, How, Named, Net, Site, answer, handler};
use sha2::{Digest, Sha256};

pub(crate) const CASES: &[Named] = &[
    ("npm_and_pip_sign_in_with_placeholders", registries),
    ("requests_of_awss_own_client_are_signed_with_the_real_key", aws),
];

const NPM: &str = "registry.npmjs.org";
const PYPI: &str = "pypi.org";
const NPM_VALUE: &str = "npm_value0of0the0secret0that0only0npm0gets";
const PYPI_VALUE: &str = "pypi-value-of-the-secret-that-only-pypi-gets";
/// Where the guest leaves the wheel that the registry then has, in the shared folder.
const WHEEL: &str = "word-1.0-py3-none-any.whl";
const MAKE_WHEEL: &str = r#"import zipfile
with zipfile.ZipFile("word-1.0-py3-none-any.whl", "w") as wheel:
    of = "word-1.0.dist-info/"
    wheel.writestr("word.py", "")
    wheel.writestr(of + "METADATA", "Metadata-Version: 2.1\nName: word\nVersion: 1.0\n")
    wheel.writestr(of + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(of + "RECORD", "")
"#;

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A server that answers those who show one of these, by what `serve` has for a path.
fn signed_in(
    shown: Vec<String>,
    serve: impl Fn(&str) -> Option<(&'static str, Vec<u8>)> + Send + Sync + 'static,
) -> Handler {
    let serve = std::sync::Arc::new(serve);
    handler(move |request: Request<Incoming>| {
        let field = request.headers().get(AUTHORIZATION).and_then(|field| field.to_str().ok());
        let is_known = field.is_some_and(|field| shown.iter().any(|known| known == field));
        let found = serve(request.uri().path());
        async move {
            match found {
                _ if !is_known => answer(StatusCode::FORBIDDEN, "who are you?"),
                None => answer(StatusCode::NOT_FOUND, "there is no such thing"),
                Some((kind, bytes)) => {
                    let mut response = answer(StatusCode::OK, bytes);
                    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                    response
                }
            }
        }
    })
}

/// The credentials that a site was shown, each kind once.
fn shown(site: &Site) -> Vec<String> {
    let field = |one: &network::Seen| Some(one.headers.get(AUTHORIZATION)?.to_str().ok()?.to_owned());
    let mut all: Vec<String> = site.seen().iter().filter_map(field).collect();
    all.sort();
    all.dedup();
    all
}

fn set(net: &Net, service: &str, value: &str) -> Case {
    let said = e2e::say(net.world.viv(net.scratch(), ["secret", "set", service]), value.as_bytes())?;
    ensure(said.code == 0, format!("{said:?}"))
}

fn registries(net: &Net) -> Case {
    let npm = [format!("Bearer {NPM_VALUE}"), basic("ci", NPM_VALUE)];
    let package = format!(
        r#"{{"name":"word","dist-tags":{{"latest":"1.2.3"}},"versions":{{"1.2.3":{{"name":"word","version":"1.2.3","dist":{{"tarball":"https://{NPM}/word.tgz"}}}}}}}}"#
    );
    let serve =
        move |path: &str| (path == "/word").then(|| ("application/json", package.clone().into_bytes()));
    let npm_site = net.site(NPM, How::default(), signed_in(npm.to_vec(), serve))?;
    let wheel = net.shared().join(WHEEL);
    let serve = move |path: &str| match path {
        "/simple/word/" => {
            Some(("text/html", format!("<a href=\"/files/{WHEEL}\">{WHEEL}</a>").into_bytes()))
        }
        path if path.strip_prefix("/files/") == Some(WHEEL) => {
            Some(("application/octet-stream", std::fs::read(&wheel).ok()?))
        }
        _ => None,
    };
    let pypi_site = net.site(PYPI, How::default(), signed_in(vec![basic("__token__", PYPI_VALUE)], serve))?;
    for host in [NPM, PYPI] {
        net.allow(&[&format!("{host}:443")])?;
    }
    set(net, "npm", NPM_VALUE)?;
    set(net, "pypi", PYPI_VALUE)?;
    std::fs::write(net.shared().join("wheel.py"), MAKE_WHEEL)?;
    // By the token of its variables, then by a user's name and the token.
    let view = "npm view --fetch-retries 0 --prefer-online word version";
    let said = net.guest(&format!(
        "set -e; cd {}; {view}; printf '//{NPM}/:_auth=%s\n' $(printf ci:$NPM_TOKEN | base64 -w0) > /tmp/npmrc
         env -u npm_config_//{NPM}/:_authToken npm_config_userconfig=/tmp/npmrc {view}
         python3 wheel.py; rm -rf /tmp/got
         pip download -q --disable-pip-version-check --no-cache-dir --no-deps -d /tmp/got -i https://__token__:$TWINE_PASSWORD@{PYPI}/simple/ word
         ls /tmp/got",
        net.shared().display()
    ))?;
    for service in ["npm", "pypi"] {
        net.viv_ok(&["secret", "rm", "-f", service])?;
    }
    let is_whole = said.text() == format!("1.2.3\n1.2.3\n{WHEEL}");
    ensure(said.code == 0 && is_whole, format!("{} {} {:?}", said.text(), said.err, shown(&npm_site)))?;
    let mut expected = npm.to_vec();
    expected.sort();
    ensure(shown(&npm_site) == expected, format!("{:?}", shown(&npm_site)))?;
    let (simple, file) = ("/simple/word/".to_owned(), format!("/files/{WHEEL}"));
    let paths: Vec<String> = pypi_site.seen().iter().map(|one| one.target.path().to_owned()).collect();
    ensure(paths.contains(&simple) && paths.contains(&file), format!("{paths:?}"))?;
    ensure(shown(&pypi_site) == [basic("__token__", PYPI_VALUE)], format!("{:?}", shown(&pypi_site)))
}

const STS: &str = "sts.eu-west-1.amazonaws.com";
const BUCKET: &str = "bucket-of-mine.s3.eu-west-1.amazonaws.com";
const KEY_ID: &str = "AKIAVALUEOFTHESECRET";
const KEY: &str = "value/of/the/secret/that/only/signs/here";
const IDENTITY: &str = r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/ci</Arn><UserId>AIDA</UserId><Account>123456789012</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>"#;
const AWS_CLIENT: &str = r#"import boto3
from botocore.config import Config
once = Config(retries={"total_max_attempts": 1}, region_name="eu-west-1")
print(boto3.client("sts", config=once).get_caller_identity()["Arn"])
s3 = boto3.client("s3", config=once)
print(s3.put_object(Bucket="bucket-of-mine", Key="dir/a b+c", Body=b"text" * 5000)["ETag"])
print(s3.get_object(Bucket="bucket-of-mine", Key="dir/a b+c")["Body"].read().decode())
print(s3.list_objects_v2(Bucket="bucket-of-mine", Prefix="dir/ä &")["ResponseMetadata"]["HTTPStatusCode"])
"#;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// What is wrong with a request's Signature Version 4, by the rules of AWS's "Create a signed request", as a server checks it.
fn verify(head: &Parts, body: &[u8], service: &str) -> Result<(), String> {
    let field = |name: &str| head.headers.get(name).and_then(|field| field.to_str().ok()).unwrap_or_default();
    let words = field("authorization").strip_prefix("AWS4-HMAC-SHA256 ").ok_or("no signature")?;
    let word = |name: &str| {
        let found = words.split(", ").find_map(|word| word.strip_prefix(name));
        found.ok_or_else(|| format!("no {name} in {words}"))
    };
    let (credential, names, signature) = (word("Credential=")?, word("SignedHeaders=")?, word("Signature=")?);
    let stamp = field("x-amz-date");
    let scope = format!("{}/eu-west-1/{service}/aws4_request", stamp.get(..8).unwrap_or_default());
    if credential != format!("{KEY_ID}/{scope}") {
        return Err(format!("signed as {credential}"));
    }
    let of_body = hex(&Sha256::digest(body));
    let payload = match field("x-amz-content-sha256") {
        "" => of_body.as_str(),
        // In TLS the client leaves the body to that; what it sends is in chunks with a checksum behind them.
        declared @ "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => declared,
        declared if declared == of_body => declared,
        declared => return Err(format!("{declared} is not the body's hash")),
    };
    let mut query: Vec<&str> = head.uri.query().unwrap_or_default().split('&').collect();
    query.sort_unstable();
    let fields: String = names.split(';').map(|name| format!("{name}:{}\n", field(name).trim())).collect();
    let request =
        format!("{}\n{}\n{}\n{fields}\n{names}\n{payload}", head.method, head.uri.path(), query.join("&"));
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex(&Sha256::digest(request.as_bytes())));
    let first = mac(format!("AWS4{KEY}").as_bytes(), stamp.get(..8).unwrap_or_default());
    let key = ["eu-west-1", service, "aws4_request"].iter().fold(first, |key, text| mac(&key, text));
    if hex(&mac(&key, &text)) == signature {
        Ok(())
    } else {
        Err(format!("the signature is another one than of {request:?}"))
    }
}

/// Answers requests that are signed with the real key.
fn checks(service: &'static str, serve: fn(&Parts, &Bytes) -> Response<Body>) -> Handler {
    handler(move |request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        match verify(&head, &body, service) {
            Ok(()) => serve(&head, &body),
            Err(why) => answer(
                StatusCode::FORBIDDEN,
                format!("<Error><Code>Signature</Code><Message>{why}</Message></Error>"),
            ),
        }
    })
}

fn bucket(head: &Parts, body: &Bytes) -> Response<Body> {
    match (head.method.as_str(), head.uri.path()) {
        ("PUT", "/dir/a%20b%2Bc") if memchr::memmem::find(body, &b"text".repeat(5000)).is_some() => {
            let mut response = answer(StatusCode::OK, "");
            response.headers_mut().insert(ETAG, HeaderValue::from_static("\"tag\""));
            response
        }
        ("GET", "/dir/a%20b%2Bc") => answer(StatusCode::OK, "what is kept"),
        ("GET", "/") => {
            answer(StatusCode::OK, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        }
        _ => answer(StatusCode::NOT_FOUND, ""),
    }
}

fn aws(net: &Net) -> Case {
    let library = network::aws_library()?;
    let folder = net.shared().join("boto3");
    let copied = Command::new("cp").arg("-r").arg(&library).arg(&folder).status()?;
    ensure(copied.success(), "boto3 cannot be copied")?;
    let how = How { alpn: &["http/1.1"], ..How::default() };
    let sites = [
        net.site(STS, how, checks("sts", |_, _| answer(StatusCode::OK, IDENTITY)))?,
        net.site(BUCKET, how, checks("s3", bucket))?,
    ];
    for host in [STS, BUCKET] {
        net.allow(&[&format!("{host}:443")])?;
    }
    set(net, "aws", &format!("{KEY_ID}\n{KEY}\n"))?;
    std::fs::write(net.shared().join("aws.py"), AWS_CLIENT)?;
    let said = net.guest("PYTHONPATH=boto3 timeout 200 python3 aws.py; env | grep ^AWS_");
    net.viv_ok(&["secret", "rm", "-f", "aws"])?;
    let said = said?;
    let text = said.text();
    let expected = "arn:aws:iam::123456789012:user/ci\n\"tag\"\nwhat is kept\n200\n";
    ensure(text.starts_with(expected) && !text.contains(KEY) && !text.contains(KEY_ID), format!("{said:?}"))?;
    ensure(text.contains("AWS_ACCESS_KEY_ID=AKIA"), format!("{said:?}"))?;
    std::fs::remove_dir_all(&folder)?;
    let hosts: Vec<_> = sites.iter().flat_map(Site::seen).map(|one| one.headers.get(HOST).cloned()).collect();
    ensure(hosts.len() == 4, format!("not each request came once: {hosts:?}"))
}
