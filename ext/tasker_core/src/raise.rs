//! From the core's errors to the class tree under TaskerCore::Error (lib/tasker_core/errors.rb).

use magnus::{prelude::*, Error, ExceptionClass, RModule, RObject, Ruby};
use tasker::ErrorKind;

/// The Ruby exception for an error of the core.
pub(crate) fn error(ruby: &Ruby, error: &tasker::Error) -> Error {
    let class = match error.kind() {
        ErrorKind::Template => "TemplateError",
        ErrorKind::NotFound => "NotFound",
        ErrorKind::Invalid => "InvalidInput",
        ErrorKind::TooLarge => "PayloadTooLarge",
        ErrorKind::Backpressure => "Backpressure",
        ErrorKind::Config => "ConfigurationError",
        ErrorKind::NotUnique => "NotUnique",
        ErrorKind::Stale => "LeaseLost",
        ErrorKind::Database => "DatabaseError",
    };
    let exception = with_class(ruby, class, error.to_string());
    let object = exception.value().and_then(RObject::from_value);
    match (error, object) {
        (tasker::Error::Backpressure { retry_after, .. }, Some(object)) => drop(object.ivar_set("@retry_after", *retry_after)),
        (tasker::Error::NotUnique { task, .. }, Some(object)) => drop(object.ivar_set("@task_id", task.to_string())),
        _ => {}
    }
    exception
}

/// An exception of a class under TaskerCore.
pub(crate) fn with_class(ruby: &Ruby, class: &str, message: String) -> Error {
    let found = ruby
        .class_object()
        .const_get::<_, RModule>("TaskerCore")
        .and_then(|m| m.const_get::<_, ExceptionClass>(class));
    let class = found.unwrap_or_else(|_| ruby.exception_standard_error());
    match class.new_instance((message.clone(),)) {
        Ok(exception) => exception.into(),
        Err(_) => Error::new(class, message),
    }
}
