//! Tokens are asked for anew before they end, by us: the guest has sentinels and notices nothing.

use http::header::{self, HeaderValue};
use http::{Method, Request};

use crate::body::{collect, full};
use crate::tasks::Tasks;
use crate::tls::{self, Offer};
use crate::upstream::{TlsTo, Upstream};
use crate::{Dial, Flow, FlowHost, Intercept};

impl Intercept {
    /// Asks a token endpoint for new tokens, puts them in force, and gives them back so that the shim can keep them. `dial`
    /// reaches `refresh.host` and `refresh.port`. When it fails the old tokens stay.
    ///
    /// # Errors
    /// One sentence without a token in it.
    pub async fn refresh(
        &self,
        refresh: &vault::oauth::Refresh,
        dial: impl Dial + 'static,
    ) -> Result<vault::oauth::Grant, String> {
        let tasks = Tasks::default();
        tasks.clone().drive(self.refresh_with(refresh, Box::new(dial), tasks)).await
    }

    async fn refresh_with(
        &self,
        refresh: &vault::oauth::Refresh,
        dial: Box<dyn Dial>,
        tasks: Tasks,
    ) -> Result<vault::oauth::Grant, String> {
        let name = policy::Name::parse(&refresh.host).map_err(|error| error.to_string())?;
        let flow = Flow { host: FlowHost::Name(name), port: refresh.port };
        let (Some(authority), Some(name)) =
            (crate::head::authority(&flow, true), tls::server_name(&flow.host, None))
        else {
            return Err(format!("{flow} cannot be named"));
        };
        let limits = self.0.limits;
        let tls = TlsTo { config: self.0.upstream_tls(Offer::Both), name };
        let upstream = Upstream::new(dial, Some(tls), false, authority, limits, tasks);
        let mut request = Request::new(full(refresh.body.to_vec()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() =
            refresh.path.parse().map_err(|_| "the token endpoint's path is none".to_owned())?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(refresh.content_type));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(refresh.body.len()));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let answer = async {
            let response = upstream.send(request, false).await.map_err(|error| error.to_string())?;
            let status = response.status().as_u16();
            match collect(response.into_body(), limits.token_answer).await {
                Ok(Some(body)) => Ok((status, zeroize::Zeroizing::new(body))),
                Ok(None) => Err("the token endpoint's answer is too long".to_owned()),
                Err(_) => Err("the token endpoint's answer broke off".to_owned()),
            }
        };
        let (status, body) = tokio::time::timeout(limits.handshake, answer)
            .await
            .map_err(|_| "the token endpoint did not answer in time".to_owned())??;
        let grant = refresh
            .response(status, &body, std::time::SystemTime::now())
            .map_err(|refusal| refusal.to_string())?;
        // Whoever has set the secret anew meanwhile wants nothing of the login that it had.
        let in_force = self.0.credentials().refresh(&refresh.name);
        if in_force.is_none_or(|now| now.body != refresh.body) {
            return Err("the login was ended meanwhile".to_owned());
        }
        self.0.grant(&grant);
        Ok(grant)
    }
}
