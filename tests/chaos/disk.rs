//! A small disk for the hottest table, which can be filled. Mounting one takes root; without, this fault is left out, and the suite says so.

use std::os::unix::fs::{chown, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::PgPool;

const MEGABYTES: u64 = 512;

pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it and moves `tasker.steps` there, while nobody uses it.
    pub(crate) async fn mount(pool: &PgPool) -> Option<SmallDisk> {
        if !nix::unistd::Uid::effective().is_root() {
            println!("not root: no disk will be full");
            return None;
        }
        let data: String = sqlx::query_scalar("SHOW data_directory").fetch_one(pool).await.unwrap();
        let owner = std::fs::metadata(&data).unwrap();
        let place = Path::new(&data).with_extension("small");
        std::fs::create_dir(&place).unwrap();
        let size = format!("size={MEGABYTES}m,mode=0755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(&place)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("nothing can be mounted here: no disk will be full");
            return None;
        }
        let disk = SmallDisk(place);
        let space = disk.0.join("space");
        std::fs::create_dir(&space).unwrap();
        chown(&space, Some(owner.uid()), Some(owner.gid())).unwrap();
        for sql in [
            format!("CREATE TABLESPACE small LOCATION '{}'", space.display()),
            "ALTER TABLE tasker.steps SET TABLESPACE small".into(),
            "ALTER INDEX tasker.steps_pkey SET TABLESPACE small".into(),
        ] {
            sqlx::raw_sql(&sql).execute(pool).await.unwrap();
        }
        Some(disk)
    }

    pub(crate) fn fill(&self) {
        // It ends when there is no space left.
        std::io::copy(&mut std::io::repeat(0), &mut std::fs::File::create(self.ballast()).unwrap()).unwrap_err();
    }

    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
