//! Calls of AWS that are answered with fresh credentials. A guest that may make them has real keys, which work from anywhere: they are not
//! signed. What AWS calls by other names (a registry's password, a database's token) is not known here; `docs/secrets.md` says so.

use http::request::Parts;

use super::{Scope, decoded};
use crate::refusal::Refusal;

/// What may be asked of the Security Token Service: all else that it does is to hand out credentials.
const OF_STS: [&str; 3] = ["GetCallerIdentity", "DecodeAuthorizationMessage", "GetAccessKeyInfo"];
/// What may not be asked of IAM.
const NOT_OF_IAM: [&str; 4] = [
    "CreateAccessKey",
    "CreateServiceSpecificCredential",
    "ResetServiceSpecificCredential",
    "CreateVirtualMFADevice",
];

/// Whether what a call asks for stands in its body: it must be there before the call is signed.
pub(super) fn is_in_body(scope: &Scope) -> bool {
    matches!(service(scope).as_str(), "sts" | "iam")
}

fn service(scope: &Scope) -> String {
    scope.service.to_ascii_lowercase()
}

/// What can be seen before the body is there.
pub(super) fn check_head(secret: &str, scope: &Scope, head: &Parts) -> Result<(), Refusal> {
    let mut names = head.uri.query().unwrap_or_default().split('&').map(|field| {
        let name = field.split('=').next().unwrap_or_default();
        decoded(name).to_ascii_lowercase()
    });
    match service(scope).as_str() {
        "sso-oauth" | "signin" => Err(mints(secret, "tokens of a sign-in")),
        // CreateSession.
        "s3express" if names.any(|name| name == "session") => Err(mints(secret, "a session of a bucket")),
        _ => Ok(()),
    }
}

fn mints(secret: &str, what: &str) -> Refusal {
    Refusal::Mints { secret: secret.to_owned(), what: what.to_owned() }
}

/// What is asked for, where [`is_in_body`].
pub(super) fn check_body(secret: &str, scope: &Scope, head: &Parts, body: &[u8]) -> Result<(), Refusal> {
    let body = String::from_utf8_lossy(body);
    let fields = head.uri.query().unwrap_or_default().split('&').chain(body.split('&'));
    let actions: Vec<String> = fields
        .filter_map(|field| {
            let (name, value) = field.trim().split_once('=')?;
            decoded(name).eq_ignore_ascii_case("action").then(|| decoded(value).trim().to_owned())
        })
        .collect();
    if service(scope) == "iam" {
        let known = |action: &&String| NOT_OF_IAM.iter().any(|known| known.eq_ignore_ascii_case(action));
        return match actions.iter().find(known) {
            Some(action) => Err(mints(secret, &format!("IAM's {action}"))),
            // The protocols of other services, which IAM does not speak.
            None if actions.is_empty() => Err(mints(secret, "a call of IAM that names no action")),
            None => Ok(()),
        };
    }
    match actions.as_slice() {
        [only] if OF_STS.contains(&only.as_str()) => Ok(()),
        [only] => Err(mints(secret, &format!("STS's {}", only.escape_debug()))),
        _ => Err(mints(secret, "a call of STS that does not name one action")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(service: &str, target: &str, body: &str) -> Result<(), Refusal> {
        let scope = Scope { region: "us-east-1".into(), service: service.into() };
        let (head, ()) = http::Request::post(target).body(()).unwrap().into_parts();
        check_head("aws", &scope, &head)?;
        if is_in_body(&scope) { check_body("aws", &scope, &head, body.as_bytes()) } else { Ok(()) }
    }

    #[test]
    fn what_hands_out_credentials_is_not_signed() {
        for (service, target, body) in [
            ("sts", "/", "Action=AssumeRole&RoleArn=x&Version=2011-06-15"),
            ("sts", "/", "Version=2011-06-15&%41ction=GetSessionToken"),
            ("sts", "/?Action=GetFederationToken", ""),
            ("sts", "/?Action=GetCallerIdentity", "Action=GetSessionToken"),
            ("sts", "/", "action=GetSessionToken&Action=GetCallerIdentity"),
            ("sts", "/", ""),
            ("STS", "/", "Action=AssumeRoot"),
            ("iam", "/", "Action=CreateAccessKey&UserName=me"),
            ("iam", "/?Action=CreateAccessKey", "Action=ListUsers"),
            ("iam", "/", "{}"),
            ("s3express", "/?session", ""),
            ("s3express", "/?x=y&%73ession=", ""),
            ("sso-oauth", "/token?aws_iam=t", "{}"),
        ] {
            let refusal = check(service, target, body).unwrap_err();
            assert!(matches!(refusal, Refusal::Mints { .. }), "{service} {target} {body}: {refusal}");
        }
    }

    #[test]
    fn what_does_not_is() {
        for (service, target, body) in [
            ("sts", "/", "Action=GetCallerIdentity&Version=2011-06-15"),
            ("sts", "/?Action=GetCallerIdentity&Version=2011-06-15", ""),
            ("iam", "/", "Action=ListUsers&Version=2010-05-08"),
            ("iam", "/?Action=ListUsers", ""),
            ("s3express", "/key", "Action=CreateAccessKey"),
            ("s3", "/?session", ""),
            ("dynamodb", "/", "Action=AssumeRole"),
        ] {
            check(service, target, body).unwrap_or_else(|refusal| panic!("{service} {body}: {refusal}"));
        }
    }
}
