//! Asking others over HTTP.

use std::time::Duration;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use crate::error::{Error, Result};

/// The variable that names a file of certificates which are trusted in place of the built-in ones, as with OpenSSL.
const ROOTS: &str = "SSL_CERT_FILE";

/// What asks, and takes any status for an answer. Errors: [`Error::Config`] where SSL_CERT_FILE names no file of certificates.
pub(crate) fn agent(patience: Duration) -> Result<ureq::Agent> {
    let mut tls = TlsConfig::builder();
    if let Some(file) = std::env::var_os(ROOTS).filter(|file| !file.is_empty()) {
        let wrong = |why: String| Error::Config(format!("{ROOTS} ({}): {why}", file.to_string_lossy()));
        let pem = std::fs::read(&file).map_err(|error| wrong(error.to_string()))?;
        let roots: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(root)) => Some(root),
                _ => None,
            })
            .collect();
        if roots.is_empty() {
            return Err(wrong("it has no certificate".into()));
        }
        tls = tls.root_certs(RootCerts::new_with_certs(&roots));
    }
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(patience))
        .http_status_as_error(false)
        .tls_config(tls.build());
    Ok(config.build().new_agent())
}
