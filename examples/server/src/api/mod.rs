//! The endpoints, and their description.

pub(crate) mod emberd;
pub(crate) mod operators;
pub(crate) mod zeroboot;

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// The OpenAPI document, made from the code.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Ember",
        description = "Sandboxes over HTTP: real Linux microVMs. The endpoints are emberd's and \
                       zeroboot's, and those for operators."
    ),
    paths(
        emberd::info,
        emberd::create,
        emberd::execute,
        emberd::delete,
        zeroboot::execute,
        zeroboot::execute_batch,
        zeroboot::health,
        zeroboot::metrics,
        operators::alive,
        operators::ready,
        operators::metrics,
        operators::describe,
    ),
    tags(
        (name = "emberd", description = "Sandboxes that a client holds"),
        (name = "zeroboot", description = "One sandbox for each program"),
        (name = "operators", description = "Health, metrics, this document"),
    ),
    modifiers(&Key),
)]
pub(crate) struct Document;

/// The bearer key, which a server need not ask for.
struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}
