//! Whether what a guest has signed for is what its request goes to. A signature is worth something wherever its scope is, so one for another
//! service than the host's would let whoever has a host under AWS's names (an API gateway, say) use the user's key elsewhere.
//! The names are those of botocore's endpoint rules.

use http::header::HOST;
use http::request::Parts;

use super::Scope;
use crate::hosts;
use crate::refusal::Refusal;

/// What the names of AWS's own hosts end with. A host elsewhere (MinIO and the like) says nothing about services and regions.
const SUFFIXES: [&str; 7] = [
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".api.amazonwebservices.com.cn",
    ".api.amazonwebservices.eu",
    ".on.aws",
];

/// Labels that say how a host is reached.
const WAYS: [&str; 4] = ["dualstack", "fips", "global", "vpce"];

/// Hosts' labels whose service has another name in signatures.
const OTHER_NAMES: [(&str, &str); 36] = [
    ("aos", "es"),
    ("appconfigdata", "appconfig"),
    ("appstream2", "appstream"),
    ("arc-recovery-control-config", "route53-recovery-control-config"),
    ("cloudhsmv2", "cloudhsm"),
    ("cloudsearchdomain", "cloudsearch"),
    ("connect", "execute-api"),
    ("contact-lens", "connect"),
    ("ddb", "dynamodb"),
    ("search-ddb", "dynamodb"),
    ("streams-ddb", "dynamodb"),
    ("efs", "elasticfilesystem"),
    ("email", "ses"),
    ("mail-manager", "ses"),
    ("eventsv2", "events"),
    ("forecastquery", "forecast"),
    ("importexport", "ingestionservice"),
    ("iot", "greengrass"),
    ("iot", "iotdata"),
    ("iot", "iotsecuredtunneling"),
    ("iot-tunneling", "iotsecuredtunneling"),
    ("ivsrealtime", "ivs"),
    ("marketplace", "aws-marketplace"),
    ("agreement-marketplace", "aws-marketplace"),
    ("catalog-marketplace", "aws-marketplace"),
    ("deployment-marketplace", "aws-marketplace"),
    ("discovery-marketplace", "aws-marketplace"),
    ("entitlement-marketplace", "aws-marketplace"),
    ("metering-marketplace", "aws-marketplace"),
    ("reporting-marketplace", "aws-marketplace"),
    ("memory-db", "memorydb"),
    ("migrationhub-config", "mgh"),
    ("oidc", "sso-oauth"),
    ("pinpoint", "mobiletargeting"),
    ("pinpoint", "sms-voice"),
    ("transcribestreaming", "transcribe"),
];

/// Refuses a scope that is not the host's, and a Host field of another host than the request goes to.
pub(crate) fn agrees(secret: &str, scope: &Scope, host: &str, head: &Parts) -> Result<(), Refusal> {
    let refused = || Refusal::Scope {
        secret: secret.to_owned(),
        scope: format!("{} in {}", scope.service, scope.region),
        host: host.to_owned(),
    };
    let host = hosts::normalized(host).ok_or_else(refused)?;
    for field in head.headers.get_all(HOST) {
        let named = field.to_str().ok().and_then(|field| field.parse::<http::uri::Authority>().ok());
        let is_same = |named: http::uri::Authority| hosts::normalized(named.host()).as_ref() == Some(&host);
        if !named.is_some_and(is_same) {
            return Err(refused());
        }
    }
    let Some(labels) = SUFFIXES.iter().find_map(|suffix| host.strip_suffix(suffix)) else { return Ok(()) };
    let mut labels = labels.rsplit('.').filter(|label| !WAYS.contains(label)).peekable();
    let mut region = labels.next_if(|label| is_region(label));
    let label = labels.next().ok_or_else(refused)?;
    let label = label.strip_suffix("-fips").or_else(|| label.strip_prefix("fips-")).unwrap_or(label);
    // As in us-east-1.es.amazonaws.com. To the left of s3 are names that anybody can choose.
    if region.is_none() && !label.starts_with("s3") {
        region = labels.next_if(|label| is_region(label));
    }
    let service = scope.service.to_ascii_lowercase();
    if is_of(label, &service) && region.is_none_or(|region| region == scope.region) {
        return Ok(());
    }
    Err(refused())
}

/// Whether a service is what a host's label says: the same, a part of it, or by its other name.
fn is_of(label: &str, service: &str) -> bool {
    let is_part = |whole: &str, part: &str| {
        let before = whole.strip_suffix(part).is_some_and(|rest| rest.ends_with('-'));
        before || whole.strip_prefix(part).is_some_and(|rest| rest.starts_with('-'))
    };
    let is_s3 = label == "s3" || label.starts_with("s3-") || label.starts_with("s3express-");
    label == service
        || is_part(label, service)
        || is_part(service, label)
        || (is_s3 && matches!(service, "s3" | "s3express" | "s3-object-lambda" | "s3-outposts"))
        || (label == "queue" && service == "sqs")
        || OTHER_NAMES.contains(&(label, service))
}

/// `us-east-1`, `us-gov-west-1`, `ap-southeast-5`.
fn is_region(label: &str) -> bool {
    let Some((names, number)) = label.rsplit_once('-') else { return false };
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    names.split_once('-').is_some_and(|(partition, _)| partition.len() == 2)
        && names.split('-').all(is_word)
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(host: &str, service: &str, region: &str) -> bool {
        let scope = Scope { region: region.into(), service: service.into() };
        let (head, ()) = http::Request::get("/").header("host", host).body(()).unwrap().into_parts();
        agrees("aws", &scope, host, &head).is_ok()
    }

    #[test]
    fn what_clients_sign_is_signed() {
        for (host, service, region) in [
            ("s3.amazonaws.com", "s3", "us-east-1"),
            ("bucket.s3.amazonaws.com", "s3", "eu-central-1"),
            ("my.bucket.s3.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("bucket.s3.dualstack.us-west-2.amazonaws.com", "s3", "us-west-2"),
            ("bucket.s3-us-west-2.amazonaws.com", "s3", "us-west-2"),
            ("us-west-1.s3.us-east-1.amazonaws.com", "s3", "us-east-1"),
            ("ap-123.s3-accesspoint.us-east-1.amazonaws.com", "s3", "us-east-1"),
            ("123.s3-control.us-east-1.amazonaws.com", "s3", "us-east-1"),
            ("b--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com", "s3express", "us-east-1"),
            ("sts.us-east-1.amazonaws.com", "sts", "us-east-1"),
            ("sts-fips.us-gov-west-1.amazonaws.com", "sts", "us-gov-west-1"),
            ("iam.amazonaws.com", "iam", "us-east-1"),
            ("iam.global.api.aws", "iam", "us-east-1"),
            ("dynamodb.cn-north-1.amazonaws.com.cn", "dynamodb", "cn-north-1"),
            ("123.ddb.us-east-1.amazonaws.com", "dynamodb", "us-east-1"),
            ("streams.dynamodb.us-east-1.amazonaws.com", "dynamodb", "us-east-1"),
            ("email.us-east-1.amazonaws.com", "ses", "us-east-1"),
            ("api.ecr.us-east-1.amazonaws.com", "ecr", "us-east-1"),
            ("runtime.sagemaker.us-east-1.amazonaws.com", "sagemaker", "us-east-1"),
            ("bedrock-runtime.us-east-1.amazonaws.com", "bedrock", "us-east-1"),
            ("abc.execute-api.us-east-1.amazonaws.com", "execute-api", "us-east-1"),
            ("vpce-1-a.sqs.us-east-1.vpce.amazonaws.com", "sqs", "us-east-1"),
            ("us-east-1.queue.amazonaws.com", "sqs", "us-east-1"),
            ("search-x.us-east-1.es.amazonaws.com", "es", "us-east-1"),
            ("a1-ats.iot.us-east-1.amazonaws.com", "iotdata", "us-east-1"),
            ("x.appsync-api.us-east-1.amazonaws.com", "appsync", "us-east-1"),
            ("x.lambda-url.us-east-1.on.aws", "lambda", "us-east-1"),
            ("metering.marketplace.us-east-1.amazonaws.com", "aws-marketplace", "us-east-1"),
            ("minio.example", "s3", "anywhere"),
        ] {
            assert!(may(host, service, region), "{host} {service} {region}");
        }
    }

    #[test]
    fn a_signature_for_another_service_or_region_is_not_made() {
        for (host, service, region) in [
            // Somebody else's API, in front of which the guest signs for the user's buckets.
            ("abc.execute-api.us-east-1.amazonaws.com", "s3", "us-east-1"),
            ("abc.execute-api.us-east-1.amazonaws.com", "sts", "us-east-1"),
            ("x.appsync-api.us-east-1.amazonaws.com", "dynamodb", "us-east-1"),
            ("search-x.us-east-1.es.amazonaws.com", "s3", "us-east-1"),
            ("sts.s3.us-east-1.amazonaws.com", "sts", "us-east-1"),
            ("sts.amazonaws.com", "s3", "us-east-1"),
            ("x.lambda-url.us-east-1.on.aws", "s3", "us-east-1"),
            ("ec2-1-2-3-4.compute-1.amazonaws.com", "ec2", "us-east-1"),
            ("my-lb-1.us-east-1.elb.amazonaws.com", "elasticloadbalancing", "us-east-1"),
            ("sqs.us-east-1.amazonaws.com", "sqs", "eu-west-1"),
            ("search-x.us-east-1.es.amazonaws.com", "es", "eu-west-1"),
            ("bucket.s3.us-east-1.amazonaws.com", "s3", "eu-west-1"),
            ("us-east-1.amazonaws.com", "s3", "us-east-1"),
        ] {
            assert!(!may(host, service, region), "{host} {service} {region}");
        }
    }

    #[test]
    fn the_host_field_is_the_host() {
        let scope = Scope { region: "us-east-1".into(), service: "sts".into() };
        for (field, is_fine) in [
            ("sts.amazonaws.com", true),
            ("STS.amazonaws.com:443", true),
            ("sts.amazonaws.com.evil.example", false),
            ("dynamodb.us-east-1.amazonaws.com", false),
            ("x@sts.amazonaws.com", true),
            ("sts.amazonaws.com/x", false),
        ] {
            let (head, ()) = http::Request::get("/").header("host", field).body(()).unwrap().into_parts();
            assert_eq!(agrees("aws", &scope, "sts.amazonaws.com", &head).is_ok(), is_fine, "{field}");
        }
    }
}
