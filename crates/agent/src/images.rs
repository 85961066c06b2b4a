//! Which files of this host a machine may be made of. Whoever may make machines names paths, and the agent reads them with its
//! own rights; where those who make machines do not own the host, its owner says which folders are for that.

use std::path::{Path, PathBuf};

use keyframe_agent_api::{Fault, FaultKind};

use crate::Result;

/// Folders with images, kernels and initial file systems. None: any file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Images {
    folders: Option<Vec<PathBuf>>,
}

impl Images {
    /// Only what lies in these folders, wherever links lead.
    pub fn within(folders: Option<Vec<PathBuf>>) -> Images {
        Images { folders }
    }

    /// The file's own path, without links, if it may be read.
    ///
    /// # Errors
    ///
    /// `Invalid` for a file outside the folders, and for one that cannot be found, because that is nobody's business either.
    pub fn check(&self, path: &Path) -> Result<PathBuf> {
        let Some(folders) = &self.folders else { return Ok(path.to_owned()) };
        let within =
            |real: &PathBuf| folders.iter().any(|folder| folder.canonicalize().is_ok_and(|f| real.starts_with(f)));
        path.canonicalize().ok().filter(within).ok_or_else(|| {
            let allowed: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            let why = format!(
                "{} is not in a folder for images ({}); put it there, or add its folder to `images` in the section [agent] \
                 of {}",
                path.display(),
                allowed.join(", "),
                crate::config::FILE
            );
            Fault::new(FaultKind::Invalid, why)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_lies_in_a_folder_for_images_is_read_wherever_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["images", "images/more", "images-of-others", "store"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        for file in ["images/a", "images/more/b", "images-of-others/c", "secret"] {
            std::fs::write(at(file), "").unwrap();
        }
        symlink(at("secret"), at("images/trap")).unwrap();
        symlink(at("images"), at("store/link")).unwrap();
        let images = Images::within(Some(vec![at("store/link"), at("missing")]));
        let real = |name: &str| at(name).canonicalize().unwrap();
        for (name, file) in [("images/a", "images/a"), ("store/link/more/b", "images/more/b")] {
            assert_eq!(images.check(&at(name)).unwrap(), real(file));
        }
        for name in ["secret", "images-of-others/c", "images/../secret", "images/trap", "images/nothing", "missing/a"] {
            let fault = images.check(&at(name)).unwrap_err();
            let told = [name, "store/link", "`images`"].iter().all(|part| fault.message.contains(part));
            assert!(fault.kind == FaultKind::Invalid && told, "{name}: {fault}");
        }
        assert!(Images::within(Some(vec![])).check(&at("images/a")).is_err(), "none is none");
        assert_eq!(Images::default().check(&at("secret")).unwrap(), at("secret"));
    }
}
