//! The promises, each with tests that try to break them, against a real PostgreSQL: set DATABASE_URL, or run `bin/test`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backpressure;
mod breakers;
mod broken_parts;
mod bugs_of_others;
mod cancelling;
mod capacity;
mod children;
mod collector;
mod command_line;
mod conditions;
mod configuration;
mod costs;
mod counting_children;
mod crowds;
mod dag_properties;
mod damaged_queues;
mod dead_letters;
mod deployments;
mod durable;
mod failures;
mod family_properties;
mod health;
mod large;
mod leases;
mod limits;
mod many_namespaces;
mod marks;
mod metrics;
mod other_servers;
mod owners;
mod poolers;
mod priorities;
mod roles;
mod scheduling;
mod search_path;
mod shares;
mod signals;
mod sleeps;
mod submitting;
mod templates;
mod traces;
mod versions;
mod world;
