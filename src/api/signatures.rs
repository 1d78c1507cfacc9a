//! The signatures of JSON Web Tokens (RFC 7518, section 3.1), checked by the cryptography that TLS has, too. Nothing is signed.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use ring::signature::{self as signatures, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: |algorithm, key| Ok(Box::new(Signature::new(*algorithm, key)?)),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has tokens of this process checked so.
pub(super) fn install() {
    // Once; another one would do, too.
    PROVIDER.install_default().ok();
}

/// How the signatures of an algorithm are checked.
enum Check {
    Rsa(&'static RsaParameters),
    Other(&'static dyn VerificationAlgorithm),
}

struct Signature {
    algorithm: Algorithm,
    check: Check,
    key: DecodingKey,
}

impl Signature {
    /// Errors: the key is of another kind, or the algorithm is none that tells who has signed.
    fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Signature> {
        let check = match algorithm {
            Algorithm::RS256 => Check::Rsa(&signatures::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => Check::Rsa(&signatures::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => Check::Rsa(&signatures::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => Check::Rsa(&signatures::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => Check::Rsa(&signatures::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => Check::Rsa(&signatures::RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => Check::Other(&signatures::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => Check::Other(&signatures::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => Check::Other(&signatures::ED25519),
            _ => return Err(ErrorKind::InvalidAlgorithm.into()),
        };
        if key.family() != algorithm.family() || key.family() == AlgorithmFamily::Hmac {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        Ok(Signature {
            algorithm,
            check,
            key: key.clone(),
        })
    }
}

impl Verifier<Vec<u8>> for Signature {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let checked = match (&self.check, self.key.kind()) {
            (Check::Rsa(how), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(how, message, signature)
            }
            (Check::Rsa(how), DecodingKeyKind::SecretOrDer(key)) => UnparsedPublicKey::new(*how, key).verify(message, signature),
            (Check::Other(how), DecodingKeyKind::SecretOrDer(key)) => UnparsedPublicKey::new(*how, key).verify(message, signature),
            _ => return Err(Error::new()),
        };
        checked.map_err(|_| Error::new())
    }
}

impl JwtVerifier for Signature {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
