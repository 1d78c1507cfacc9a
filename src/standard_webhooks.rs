//! Signatures of webhooks, as <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md> has them: HMAC-SHA256 of id, time and body.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use ring::hmac;
use uuid::Uuid;

use crate::error::{Error, Result};

/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// A new secret, of 244 random bits.
pub(crate) fn new_secret() -> String {
    let bytes = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
    format!("{PREFIX}{}", STANDARD.encode(bytes))
}

/// Errors: [`Error::Invalid`] for a secret that is none.
pub(crate) fn check(secret: &str) -> Result<()> {
    key(secret).map(|_| ())
}

fn key(secret: &str) -> Result<hmac::Key> {
    let decoded = secret.strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok());
    match decoded.filter(|bytes| (24..=64).contains(&bytes.len())) {
        Some(bytes) => Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
        None => Err(Error::Invalid(format!(
            "the secret of a webhook is not acceptable: expected {PREFIX} and 24 to 64 bytes in base64"
        ))),
    }
}

/// The header `webhook-signature`: one signature for each secret. `timestamp`: when it is sent, in seconds since 1970. Errors: [`Error::Invalid`] for a secret that is none.
pub(crate) fn signature(secrets: &[String], id: &str, timestamp: i64, body: &str) -> Result<String> {
    let signed = format!("{id}.{timestamp}.{body}");
    let sign = |secret: &String| Ok(format!("v1,{}", STANDARD.encode(hmac::sign(&key(secret)?, signed.as_bytes()))));
    Ok(secrets.iter().map(sign).collect::<Result<Vec<_>>>()?.join(" "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_of_the_specifications_example_is_the_one_that_it_has() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        let body = r#"{"test": 2432232314}"#;
        let signed = signature(std::slice::from_ref(&secret), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).unwrap();
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let both = signature(&[new_secret(), secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).unwrap();
        assert!(both.ends_with(&format!(" {signed}")), "{both}");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        assert!(check(&new_secret()).is_ok());
        for wrong in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_not base64",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
