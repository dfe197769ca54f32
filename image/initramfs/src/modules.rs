//! The modules of one kernel, by name, and what each needs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{InitramfsError, modinfo};

/// The modules of one kernel: files as the package has them (`.ko` or `.ko.xz`), and what is built into the kernel.
#[derive(Debug, Default)]
pub struct Modules {
    files: BTreeMap<String, Source>,
    built_in: BTreeSet<String>,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Bytes { bytes: Vec<u8>, packed: bool },
}

/// A module's name as the kernel has it: the file name without folders and endings, `-` as `_`. `None` for what is not a module.
pub fn normal_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(stem.replace('-', "_"))
}

impl Modules {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in all modules below a folder such as `/usr/lib/modules/6.12.0-amd64`, and its `modules.builtin`.
    ///
    /// # Errors
    /// [`InitramfsError::Read`].
    pub fn from_dir(dir: &Path) -> Result<Self, InitramfsError> {
        let mut modules = Self::new();
        let mut folders = vec![dir.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let failed = |source| InitramfsError::Read { path: folder.clone(), source };
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let kind = entry.file_type().map_err(failed)?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) =
                    entry.file_name().to_str().and_then(normal_name).filter(|_| kind.is_file())
                {
                    modules.files.insert(name, Source::File(entry.path()));
                }
            }
        }
        if let Ok(list) = std::fs::read_to_string(dir.join("modules.builtin")) {
            modules.insert_built_in(&list);
        }
        Ok(modules)
    }

    /// Takes in one module under its file name, as the package has it. Other files are ignored; returns whether it was taken.
    pub fn insert(&mut self, file_name: &str, bytes: Vec<u8>) -> bool {
        let Some(name) = normal_name(file_name) else { return false };
        self.files.insert(name, Source::Bytes { bytes, packed: file_name.ends_with(".xz") });
        true
    }

    /// Takes in the text of the package's `modules.builtin`: paths of what needs no loading.
    pub fn insert_built_in(&mut self, list: &str) {
        self.built_in.extend(list.lines().filter_map(normal_name));
    }

    /// The modules that `names` need and they themselves, each after what it needs, without what is built in. Their contents,
    /// unpacked, are added to `contents`.
    pub(crate) fn closure(
        &self,
        names: &[&str],
        contents: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<Vec<String>, InitramfsError> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut Vec::new(), &mut order, contents)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        above: &mut Vec<String>,
        order: &mut Vec<String>,
        contents: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<(), InitramfsError> {
        let name = name.replace('-', "_");
        if order.contains(&name) || (self.built_in.contains(&name) && !self.files.contains_key(&name)) {
            return Ok(());
        }
        if above.contains(&name) {
            return Err(InitramfsError::Circle(name));
        }
        if !contents.contains_key(&name) {
            contents.insert(name.clone(), self.read(&name)?);
        }
        let needs = contents.get(&name).and_then(|bytes| modinfo::depends(bytes));
        let needs = needs.ok_or_else(|| InitramfsError::NotAModule(name.clone()))?;
        above.push(name.clone());
        for needed in needs {
            self.visit(&needed, above, order, contents)?;
        }
        above.pop();
        order.push(name);
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, InitramfsError> {
        let source = self.files.get(name).ok_or_else(|| InitramfsError::MissingModule(name.to_owned()))?;
        match source {
            Source::File(path) => {
                let bytes = std::fs::read(path)
                    .map_err(|source| InitramfsError::Read { path: path.clone(), source })?;
                unpack(name, bytes, path.extension().is_some_and(|e| e == "xz"))
            }
            Source::Bytes { bytes, packed } => unpack(name, bytes.clone(), *packed),
        }
    }
}

fn unpack(name: &str, bytes: Vec<u8>, packed: bool) -> Result<Vec<u8>, InitramfsError> {
    if !packed {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    lzma_rust2::XzReader::new(bytes.as_slice(), true)
        .read_to_end(&mut plain)
        .map_err(|source| InitramfsError::Unpack { name: name.to_owned(), source })?;
    Ok(plain)
}
