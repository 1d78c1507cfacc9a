//! Which certificates of a server are accepted: those that libpq accepts.
//!
//! The driver leaves that to webpki, which is stricter in two ways that PostgreSQL's own documentation leads into: a self-signed certificate as
//! `openssl req -x509` makes it may sign others, and is then not accepted as a server's own (`CaUsedAsEndEntity`); and a name counts only as a
//! subjectAltName, where libpq reads the common name if there is none (PostgreSQL 15, 34.19.1).

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_name, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::{Certificate, TbsCertificate};

/// What is still stricter than libpq.
const SIGNS_OTHERS: &str = "the server's certificate is one that may sign others (CA:TRUE), and not one that sslrootcert has: name that one there, or make it with basicConstraints=CA:FALSE";

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// What a URL, or libpq's environment, names.
#[derive(Debug, Clone, Default)]
pub(super) struct Certificates {
    /// sslrootcert
    pub(super) root: Option<PathBuf>,
    /// sslcert and sslkey
    pub(super) own: Option<(PathBuf, PathBuf)>,
}

/// Whether what the driver refused may be a certificate that libpq would accept.
pub(super) fn may_be_accepted(refused: &sqlx::Error) -> bool {
    let text = refused.to_string();
    text.contains("CaUsedAsEndEntity") || text.contains("not valid for name") || text.contains("NotValidForName")
}

/// TLS with a server that these certificates verify; with its name, too, where that is `named`.
/// Errors: why they cannot be read.
pub(super) fn tls(certificates: &Certificates, named: bool) -> Result<ClientConfig, String> {
    let mut known = Vec::new();
    let mut roots = RootCertStore::empty();
    if let Some(file) = &certificates.root {
        let unreadable = |error: &dyn std::fmt::Display| format!("the certificates of {} cannot be read: {error}", file.display());
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unreadable(&error))? {
            let certificate = certificate.map_err(|error| unreadable(&error))?;
            roots.add(certificate.clone()).map_err(|error| unreadable(&error))?;
            known.push(certificate);
        }
    }
    let provider = Arc::new(ring::default_provider());
    let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AsLibpq { webpki, known, named }));
    let Some((certificate, key)) = &certificates.own else {
        return Ok(config.with_no_client_auth());
    };
    let unreadable = |error: &dyn std::fmt::Display| format!("{} and {} cannot be used: {error}", certificate.display(), key.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
        .map_err(|error| unreadable(&error))?
        .collect();
    config
        .with_client_auth_cert(
            chain.map_err(|error| unreadable(&error))?,
            PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(&error))?,
        )
        .map_err(|error| unreadable(&error))
}

#[derive(Debug)]
struct AsLibpq {
    webpki: Arc<WebPkiServerVerifier>,
    /// What sslrootcert has.
    known: Vec<CertificateDer<'static>>,
    /// Whether the name counts (verify-full).
    named: bool,
}

impl ServerCertVerifier for AsLibpq {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = match self.webpki.verify_server_cert(server, intermediates, name, ocsp, now) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        match &refused {
            // webpki looks at the name last: the rest is as it should be.
            Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {}
            Error::InvalidCertificate(CertificateError::Other(why)) if why.to_string().contains("CaUsedAsEndEntity") => {
                if !self.known.iter().any(|known| known == server) {
                    return Err(Error::General(SIGNS_OTHERS.into()));
                }
                is_of_this_time(server, now)?;
            }
            _ => return Err(refused),
        }
        if self.named && !is_named(server, name)? {
            return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, server, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, server, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

fn read(certificate: &CertificateDer<'_>) -> Result<TbsCertificate, Error> {
    match Certificate::from_der(certificate) {
        Ok(certificate) => Ok(certificate.tbs_certificate),
        Err(_) => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
    }
}

fn is_of_this_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = read(certificate)?.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

/// By a subjectAltName, or where it has no DNS name and no address there, by its common name.
fn is_named(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<bool, Error> {
    if verify_server_name(&ParsedCertificate::try_from(certificate)?, name).is_ok() {
        return Ok(true);
    }
    let certificate = read(certificate)?;
    let is_a_host = |name: &GeneralName| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_));
    match certificate.get::<SubjectAltName>() {
        Ok(Some((_, names))) if names.0.iter().any(is_a_host) => return Ok(false),
        Ok(_) => {}
        Err(_) => return Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
    }
    let mut attributes = certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let common = attributes.find(|attribute| attribute.oid == COMMON_NAME);
    let Some(common) = common.and_then(|common| std::str::from_utf8(common.value.value()).ok()) else {
        return Ok(false);
    };
    let name = name.to_str();
    Ok(match (common.strip_prefix("*."), name.split_once('.')) {
        (Some(domain), Some((_, of))) => domain.eq_ignore_ascii_case(of),
        _ => common.eq_ignore_ascii_case(&name),
    })
}
