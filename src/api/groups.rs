//! Roles by the groups in which another system has somebody.

use std::collections::BTreeMap;

use crate::engine::tokens::Role;
use crate::error::{Error, Result};

/// Which role each group has.
#[derive(Debug)]
pub(super) struct Groups(BTreeMap<String, Role>);

impl Groups {
    /// As settings have them; without any, groups are roles by their names. Errors: [`Error::Config`].
    pub(super) fn new(named: &BTreeMap<String, String>) -> Result<Groups> {
        let parse = |(group, role): (&String, &String)| Ok((group.clone(), role.parse().map_err(Error::Config)?));
        let groups = match named.is_empty() {
            true => Role::ALL.iter().map(|role| (role.name().to_owned(), *role)).collect(),
            false => named.iter().map(parse).collect::<Result<_>>()?,
        };
        Ok(Groups(groups))
    }

    /// That of the group that may do most. None: they are in none that has a role.
    pub(super) fn role<'g>(&self, groups: impl Iterator<Item = &'g str>) -> Option<Role> {
        groups.filter_map(|group| self.0.get(group).copied()).max()
    }
}
