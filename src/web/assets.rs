//! What the pages refer to: the stylesheet, the scripts (htmx 4.0.1, Zero-Clause BSD), the icon. Each has the digest of its content in its name, so that
//! browsers keep it for good.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::etag::digest;

struct Asset {
    file: &'static str,
    media_type: &'static str,
    content: &'static str,
}

const ALL: [Asset; 4] = [
    Asset {
        file: "tasker.css",
        media_type: "text/css; charset=utf-8",
        content: include_str!("assets/tasker.css"),
    },
    Asset {
        file: "htmx.min.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_str!("assets/htmx.min.js"),
    },
    Asset {
        file: "hx-sse.min.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_str!("assets/hx-sse.min.js"),
    },
    Asset {
        file: "icon.svg",
        media_type: "image/svg+xml",
        content: include_str!("assets/icon.svg"),
    },
];

static NAMES: LazyLock<[String; 4]> = LazyLock::new(|| ALL.each_ref().map(Asset::name));

impl Asset {
    fn name(&self) -> String {
        format!("{}-{}", digest(self.content), self.file)
    }
}

/// As what a file is found under `assets/`.
pub(super) fn name(file: &str) -> &'static str {
    let place = ALL.iter().position(|asset| asset.file == file);
    place.map_or("", |place| &NAMES[place])
}

pub(super) async fn show(Path(name): Path<String>) -> Response {
    let found = NAMES.iter().position(|known| *known == name).map(|place| &ALL[place]);
    let Some(asset) = found else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (CONTENT_TYPE, asset.media_type),
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, asset.content).into_response()
}
