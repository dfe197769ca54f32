//! A real git server: `git http-backend` of the host behind a small CGI, for whoever shows the token.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::Verdict;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, request};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{Body, Handler, answer, handler};

/// Repositories in one folder.
#[derive(Debug)]
pub struct Repositories {
    folder: PathBuf,
    backend: PathBuf,
}

impl Repositories {
    /// In this folder, which must be empty.
    ///
    /// # Errors
    /// The host has no git that can serve: [`Verdict::Skipped`].
    pub fn new(folder: PathBuf) -> Result<Self, Verdict> {
        let output = Command::new("git").arg("--exec-path").output();
        let Ok(output) = output else { return Err(Verdict::Skipped("the host has no git".into())) };
        let backend = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("git-http-backend");
        if !backend.is_file() {
            return Err(Verdict::Skipped(format!("the host has no {}", backend.display())));
        }
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder, backend })
    }

    /// A new bare repository with one commit of one file.
    pub fn create(&self, name: &str, file: &str, text: &str) -> Result<(), Verdict> {
        let seed = self.folder.join("seed");
        std::fs::create_dir(&seed)?;
        std::fs::write(seed.join(file), text)?;
        let own = ["-c", "user.name=t", "-c", "user.email=t@t.example"];
        git(&seed, &["init", "-q", "-b", "main"])?;
        git(&seed, &["add", "."])?;
        git(&seed, &[&own[..], &["commit", "-q", "-m", "first"]].concat())?;
        git(&self.folder, &["clone", "-q", "--bare", "seed", name])?;
        git(&self.folder.join(name), &["config", "http.receivepack", "true"])?;
        Ok(std::fs::remove_dir_all(seed)?)
    }

    /// The subject of the newest commit of a repository.
    pub fn newest(&self, name: &str) -> Result<String, Verdict> {
        git(&self.folder.join(name), &["log", "-1", "--format=%s", "main"])
    }

    /// Serves them to whoever has this token as a password, whatever the user's name.
    pub fn serve(&self, token: &str) -> Handler {
        let (folder, backend, token) = (self.folder.clone(), self.backend.clone(), token.to_owned());
        handler(move |request: Request<Incoming>| {
            let (folder, backend, token) = (folder.clone(), backend.clone(), token.clone());
            async move {
                let (head, body) = request.into_parts();
                if !has_token(&head, &token) {
                    let mut refusal = answer(StatusCode::UNAUTHORIZED, "who are you?\n");
                    let basic = HeaderValue::from_static("Basic realm=\"git\"");
                    refusal.headers_mut().insert(WWW_AUTHENTICATE, basic);
                    return refusal;
                }
                let Ok(body) = body.collect().await else { return broken("the body broke off") };
                let body = body.to_bytes();
                let work = move || cgi(&backend, &folder, &head, &body);
                match tokio::task::spawn_blocking(work).await {
                    Ok(Ok(response)) => response,
                    Ok(Err(why)) => broken(&why.to_string()),
                    Err(why) => broken(&why.to_string()),
                }
            }
        })
    }
}

fn broken(why: &str) -> Response<Body> {
    answer(StatusCode::INTERNAL_SERVER_ERROR, why.to_owned())
}

/// Whether a request has this password in Basic authentication.
fn has_token(head: &request::Parts, token: &str) -> bool {
    let value = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let pair =
        value.and_then(|value| value.strip_prefix("Basic ")).and_then(|text| STANDARD.decode(text).ok());
    pair.is_some_and(|pair| pair.splitn(2, |byte| *byte == b':').nth(1) == Some(token.as_bytes()))
}

fn git(folder: &Path, arguments: &[&str]) -> Result<String, Verdict> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Verdict::Wrong(format!("git {arguments:?}: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One request by CGI (RFC 3875).
fn cgi(
    program: &Path,
    folder: &Path,
    head: &request::Parts,
    body: &[u8],
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let field =
        |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut child = Command::new(program)
        .env("GIT_PROJECT_ROOT", folder)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_PROTOCOL", field(&HeaderName::from_static("git-protocol")))
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path())
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", field(&CONTENT_TYPE))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", field(&CONTENT_ENCODING))
        .env("REMOTE_USER", "ci")
        .env("REMOTE_ADDR", "198.51.100.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(body)));
        child.wait_with_output()
    })?;
    let end = memchr::memmem::find(&output.stdout, b"\r\n\r\n").ok_or("no head in the answer")?;
    let (fields, rest) = output.stdout.split_at(end);
    let mut response = answer(StatusCode::OK, rest.get(4..).unwrap_or_default().to_vec());
    for line in std::str::from_utf8(fields)?.lines() {
        let (name, value) = line.split_once(':').ok_or("a line without a colon")?;
        if name.eq_ignore_ascii_case("status") {
            *response.status_mut() = value.trim().split(' ').next().unwrap_or_default().parse()?;
        } else {
            response.headers_mut().insert(HeaderName::from_bytes(name.as_bytes())?, value.trim().parse()?);
        }
    }
    Ok(response)
}
