//! Who asks the API as other systems say: JSON Web Tokens, proxies, pages of other sites; and TLS.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use chrono::Utc;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{EcdsaKeyPair, KeyPair, RsaKeyPair, RsaPublicKeyComponents, ECDSA_P256_SHA256_FIXED_SIGNING, RSA_PKCS1_SHA256};
use serde_json::{json, Value};
use tasker::api::ApiConfig;
use tasker::config::{JwtConfig, ProxyConfig};
use tasker::http::{Certificate, Door};
use tokio::net::TcpListener;

use super::api::{Answer, Asked};
use super::world::World;

const SECRET: &[u8] = b"a secret that both sides know, and that is long enough";

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

fn openssl(folder: &Path, arguments: &str) {
    let done = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Somebody who signs tokens.
struct Signer {
    id: String,
    key: SigningKey,
}

enum SigningKey {
    Rsa(RsaKeyPair),
    Elliptic(EcdsaKeyPair),
    Shared(hmac::Key),
}

impl Signer {
    fn rsa(id: &str) -> Signer {
        let folder = tempfile::tempdir().unwrap();
        openssl(folder.path(), "genrsa -traditional -out key.pem 2048");
        openssl(folder.path(), "rsa -in key.pem -traditional -outform DER -out key.der");
        let key = RsaKeyPair::from_der(&fs::read(folder.path().join("key.der")).unwrap()).unwrap();
        Signer {
            id: id.into(),
            key: SigningKey::Rsa(key),
        }
    }

    fn elliptic(id: &str) -> Signer {
        let (how, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(how, key.as_ref(), &random).unwrap();
        Signer {
            id: id.into(),
            key: SigningKey::Elliptic(key),
        }
    }

    fn shared(id: &str) -> Signer {
        Signer {
            id: id.into(),
            key: SigningKey::Shared(hmac::Key::new(hmac::HMAC_SHA256, SECRET)),
        }
    }

    /// As its owner publishes it.
    fn public(&self) -> Value {
        let mut key = match &self.key {
            SigningKey::Rsa(key) => {
                let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                let [n, e] = [n, e].map(|number| URL_SAFE_NO_PAD.encode(number));
                json!({ "kty": "RSA", "n": n, "e": e })
            }
            SigningKey::Elliptic(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
            }
            SigningKey::Shared(_) => json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "alg": "HS256" }),
        };
        key["kid"] = json!(self.id);
        key["use"] = json!("sig");
        key
    }

    fn sign(&self, claims: &Value) -> String {
        let algorithm = match &self.key {
            SigningKey::Rsa(_) => "RS256",
            SigningKey::Elliptic(_) => "ES256",
            SigningKey::Shared(_) => "HS256",
        };
        let header = json!({ "alg": algorithm, "typ": "JWT", "kid": self.id });
        let said = [header, claims.clone()]
            .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()))
            .join(".");
        let signature = match &self.key {
            SigningKey::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), said.as_bytes(), &mut signature)
                    .unwrap();
                signature
            }
            SigningKey::Elliptic(key) => key.sign(&SystemRandom::new(), said.as_bytes()).unwrap().as_ref().to_vec(),
            SigningKey::Shared(key) => hmac::sign(key, said.as_bytes()).as_ref().to_vec(),
        };
        format!("{said}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Publishes keys. None: it is out of order.
async fn issuer(keys: Arc<Mutex<Option<Vec<Value>>>>) -> String {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", port.local_addr().unwrap());
    let answer = move || {
        let keys = keys.lock().unwrap().clone();
        async move {
            keys.map(|keys| Json(json!({ "keys": keys })))
                .ok_or(axum::http::StatusCode::BAD_GATEWAY)
        }
    };
    tokio::spawn(async move { axum::serve(port, Router::new().route("/keys", get(answer))).await });
    url
}

/// Of somebody in these groups, with some claims changed.
fn claims(groups: &[&str], changed: Value) -> Value {
    let now = Utc::now().timestamp();
    let mut claims = json!({ "iss": "https://login.example", "aud": ["tasker", "other"], "exp": now + 300, "nbf": now - 1, "sub": "7", "email": "ada@example.com", "realm_access": { "roles": groups } });
    for (name, value) in changed.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn told_by(url: &str) -> ApiConfig {
    let jwt = JwtConfig {
        jwks_url: Some(url.into()),
        issuer: Some("https://login.example".into()),
        audience: Some("tasker".into()),
        name: "email".into(),
        role: "realm_access.roles".into(),
        roles: [("staff", "reader"), ("platform", "admin"), ("shops", "submitter")]
            .map(|(group, role)| (group.into(), role.into()))
            .into(),
        ..JwtConfig::default()
    };
    ApiConfig {
        jwt,
        trust_loopback: false,
        ..ApiConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_web_token_counts_where_the_issuer_signed_it_for_us_and_for_now() {
    World::with(async |world| {
        world.register(ONE).await;
        let (key, other) = (Signer::rsa("one"), Signer::rsa("one"));
        let elliptic = Signer::elliptic("two");
        let shared = Signer::shared("shared");
        let published = Arc::new(Mutex::new(Some(vec![
            json!({ "kty": "new", "kid": "?" }),
            key.public(),
            elliptic.public(),
            shared.public(),
        ])));
        let api = Asked::with_config(world, &told_by(&issuer(published).await)).await;
        let by = |key: &Signer, claims: Value| api.with(&key.sign(&claims));

        assert_eq!(by(&key, claims(&["staff"], json!({}))).get("/tasks").status, 200);
        assert_eq!(
            by(&elliptic, claims(&["staff", "nobody"], json!({ "aud": "tasker" })))
                .get("/tasks")
                .status,
            200
        );
        let admin = by(&elliptic, claims(&["staff", "platform"], json!({})));
        assert_eq!(admin.post("/tasks", json!({ "template": "one", "tasks": [{}] })).status, 201);
        assert_eq!(admin.get("/audit").body["items"][0]["who"], "ada@example.com");
        let shop = by(&key, claims(&["shops"], json!({ "tasker_namespaces": ["there"] })));
        shop.post("/tasks", json!({ "template": "here/one", "tasks": [{}] }))
            .is_refused(403, "is for there");

        let now = Utc::now().timestamp();
        for changed in [
            json!({ "iss": "https://evil.example" }),
            json!({ "aud": "other" }),
            json!({ "exp": now - 3_600 }),
            json!({ "nbf": now + 3_600 }),
            json!({ "exp": null }),
            json!({ "email": null }),
        ] {
            let refused = by(&key, claims(&["staff"], changed.clone())).get("/tasks");
            assert_eq!(refused.status, 401, "{changed}: {refused:?}");
        }
        by(&other, claims(&["staff"], json!({})))
            .get("/tasks")
            .is_refused(401, "a token that counts");
        by(&key, claims(&["nobody"], json!({})))
            .get("/tasks")
            .is_refused(403, "realm_access.roles");

        by(&shared, claims(&["platform"], json!({})))
            .get("/tasks")
            .is_refused(401, "a token that counts");
        let signed = key.sign(&claims(&["platform"], json!({})));
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", signed.split('.').nth(1).unwrap());
        for token in [unsigned.as_str(), "", "a.b.c", "eyJ.eyJ.x"] {
            api.with(token).get("/tasks").is_refused(401, "a token that counts");
        }
        api.get(&format!("/tasks?access_token={signed}"))
            .is_refused(400, "does not belong in a URL");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_change_and_their_issuer_may_be_away() {
    World::with(async |world| {
        let (old, new) = (Signer::elliptic("old"), Signer::elliptic("new"));
        let published = Arc::new(Mutex::new(None));
        let api = Asked::with_config(world, &told_by(&issuer(published.clone()).await)).await;
        let ask = |key: &Signer| api.with(&key.sign(&claims(&["staff"], json!({})))).get("/tasks");
        // Whoever comes with a key that is not known has the issuer asked, though not each time.
        let until = async |key: &Signer, status: u16| {
            while ask(key).status != status {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };

        ask(&old).is_refused(503, "api.jwt.jwks_url");
        *published.lock().unwrap() = Some(vec![old.public()]);
        until(&old, 200).await;
        ask(&new).is_refused(401, "a token that counts");
        *published.lock().unwrap() = Some(vec![new.public()]);
        until(&new, 200).await;
        ask(&old).is_refused(401, "a token that counts");
        *published.lock().unwrap() = None;
        assert_eq!(ask(&new).status, 200, "what is known counts while the issuer is away");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_says_who_asks_where_its_address_is_believed_and_nobody_else_does() {
    World::with(async |world| {
        world.register(ONE).await;
        let behind = |network: &str| ApiConfig {
            proxy: ProxyConfig {
                addresses: vec![network.into()],
                roles: [("ops", "operator"), ("root", "admin")]
                    .map(|(group, role)| (group.into(), role.into()))
                    .into(),
                ..ProxyConfig::default()
            },
            trust_loopback: false,
            ..ApiConfig::default()
        };
        let user = ("x-forwarded-user", "ada");
        let groups = |names| ("x-forwarded-groups", names);
        let elsewhere = Asked::with_config(world, &behind("10.0.0.0/8")).await;
        elsewhere
            .send("GET /tasks", &[user, groups("root")], None)
            .is_refused(401, "Authorization: Bearer");

        let api = Asked::with_config(world, &behind("127.0.0.1")).await;
        let send = |what: &str, more: &[(&str, &str)], body: Option<Value>| -> Answer {
            let mut headers = vec![
                user,
                ("content-type", "application/json"),
                ("x-forwarded-for", "6.6.6.6, 192.0.2.7, 127.0.0.1"),
            ];
            headers.extend(more);
            api.send(what, &headers, body.map(|body| body.to_string()).as_deref())
        };
        let create = || Some(json!({ "template": "one", "tasks": [{}] }));
        api.get("/tasks").is_refused(401, "Authorization: Bearer");
        send("GET /tasks", &[], None).is_refused(403, "api.proxy.roles");
        send("GET /tasks", &[groups("others, root2")], None).is_refused(403, "api.proxy.roles");
        assert_eq!(send("POST /tasks", &[groups("others, ops")], create()).status, 201);
        send("GET /audit", &[groups("ops")], None).is_refused(403, "takes admin");
        send("POST /tasks", &[groups("ops"), ("sec-fetch-site", "cross-site")], create()).is_refused(403, "another site");
        send("POST /tasks", &[groups("ops"), ("origin", "https://evil.example")], create()).is_refused(403, "another site");

        let told = send("GET /audit", &[groups("root")], None).body["items"][0].clone();
        assert_eq!([&told["who"], &told["address"]], ["ada", "192.0.2.7"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_use_the_api_where_these_are_allowed() {
    World::with(async |world| {
        let config = ApiConfig {
            allowed_origins: vec!["https://console.example".into()],
            ..ApiConfig::default()
        };
        let (open, closed) = (Asked::with_config(world, &config).await, Asked::open(world, true).await);
        let allowed = |api: &Asked, origin: &str| {
            let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
            let asked = agent
                .options(format!("http://{}/api/v1/tasks", api.address()))
                .header("origin", origin);
            let asked = asked
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "authorization");
            let answer = asked.call().unwrap();
            answer
                .headers()
                .get("access-control-allow-origin")
                .map(|origin| origin.to_str().unwrap().to_owned())
        };
        assert_eq!(
            allowed(&open, "https://console.example").as_deref(),
            Some("https://console.example")
        );
        assert_eq!(allowed(&open, "https://evil.example"), None);
        assert_eq!(allowed(&closed, "https://console.example"), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_over_tls_and_takes_a_renewed_certificate_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let renew = || {
        openssl(folder.path(), "req -x509 -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -newkey rsa:2048 -nodes -keyout key -out certificate")
    };
    let file = |name: &str| folder.path().join(name);
    let refused = Certificate::read(&file("certificate"), &file("key")).unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    renew();
    let certificate = Certificate::read(&file("certificate"), &file("key")).unwrap();
    let door = Door::bind("127.0.0.1:0".parse().ok(), SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap()
        .encrypted(certificate);
    let port = door.address().unwrap().port();
    let serving = door.open(Router::new().route("/", get(|| async { "here" })));
    let ask = || {
        let pem = fs::read(file("certificate")).unwrap();
        let root = ureq::tls::Certificate::from_pem(&pem).unwrap();
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
            .build();
        let agent = ureq::Agent::config_builder().tls_config(tls).build().new_agent();
        let mut answer = agent.get(format!("https://localhost:{port}/")).call().ok()?;
        answer.body_mut().read_to_string().ok()
    };
    // Who says nothing is in nobody's way.
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(ask().as_deref(), Some("here"));
    renew();
    assert_eq!(ask(), None, "the one before is not the one that is trusted now");
    while ask().is_none() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    fs::write(file("key"), "no key").unwrap();
    assert_eq!(ask().as_deref(), Some("here"), "files that are being written are none");
    drop(silent);
    serving.stop().await;
}
