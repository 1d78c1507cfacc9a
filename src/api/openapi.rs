//! What the OpenAPI document says beside what the handlers do.

use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, Content, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, RefOr, Required, Schema, ServerBuilder};
use utoipa::PartialSchema;

use super::problem::Problem;

pub(super) fn complete(document: OpenApi) -> OpenApi {
    let license = LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build();
    let info = InfoBuilder::new()
        .title("tasker")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Workflow orchestration that needs nothing but PostgreSQL"))
        .license(Some(license));
    let mut document = OpenApiBuilder::from(document)
        .info(info.build())
        .servers(Some([ServerBuilder::new().url("/").build()]))
        .build();
    for path in document.paths.paths.values_mut() {
        for operation in [&mut path.post, &mut path.put].into_iter().flatten() {
            if let Some(RefOr::T(body)) = &mut operation.request_body {
                body.required = Some(is_needed(body, document.components.as_ref()));
            }
        }
    }
    let components = document.components.get_or_insert_default();
    components.schemas.insert("Problem".into(), Problem::schema());
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    document.security = Some(vec![SecurityRequirement::new("token", [] as [&str; 0])]);
    document
}

/// None at all is `{}`: it must be there where a field of it must.
fn is_needed(body: &RequestBody, components: Option<&Components>) -> Required {
    let named = body.content.values().find_map(|content| match content {
        RefOr::T(Content {
            schema: Some(RefOr::Ref(schema)),
            ..
        }) => schema.ref_location.rsplit('/').next(),
        _ => None,
    });
    let schema = named.and_then(|name| components?.schemas.get(name));
    match schema {
        Some(RefOr::T(Schema::Object(object))) if object.required.is_empty() => Required::False,
        _ => Required::True,
    }
}
