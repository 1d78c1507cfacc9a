//! The certificate by which the API answers over TLS, which others renew while we run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use crate::error::{Error, Result};

/// How often it is looked at whether the files have changed.
const EVERY: Duration = Duration::from_secs(10);

/// A certificate and its key, in files.
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    changed: [Option<SystemTime>; 2],
    looked: Instant,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.certificate.display())
    }
}

impl Certificate {
    /// Of these files (PEM). Errors: [`Error::Config`] where one cannot be read, or they do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Certificate> {
        let current = Current {
            changed: changed(certificate, key),
            config: read(certificate, key)?,
            looked: Instant::now(),
        };
        Ok(Certificate {
            certificate: certificate.into(),
            key: key.into(),
            current: Mutex::new(current),
        })
    }

    /// Of what the files have now; where that is nothing to work with, of what they had.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= EVERY {
            current.looked = Instant::now();
            let changed = changed(&self.certificate, &self.key);
            if changed != current.changed {
                match read(&self.certificate, &self.key) {
                    Ok(config) => {
                        tracing::info!(certificate = %self.certificate.display(), "the certificate has changed");
                        (current.config, current.changed) = (config, changed);
                    }
                    Err(error) => tracing::warn!(%error, "the certificate has changed, and the one before is used"),
                }
            }
        }
        TlsAcceptor::from(current.config.clone())
    }
}

fn changed(certificate: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [certificate, key].map(|file| std::fs::metadata(file).and_then(|about| about.modified()).ok())
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let wrong = |file: &Path, why: &dyn fmt::Display| Error::Config(format!("{}: {why}", file.display()));
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| wrong(certificate, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| wrong(certificate, &error))?;
    Ok(Arc::new(config))
}
