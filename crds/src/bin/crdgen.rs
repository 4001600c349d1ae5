//! Writes the CustomResourceDefinitions to `crds/yaml` and `crds/yaml/no-cel`.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crds::generate::{Rules, definitions, yaml};

fn main() -> io::Result<()> {
    let target = std::env::args_os()
        .nth(1)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml"), PathBuf::from);
    for (folder, rules) in [(target.clone(), Rules::Cel), (target.join("no-cel"), Rules::None)] {
        fs::create_dir_all(&folder)?;
        for (file, definition) in definitions(rules) {
            let path = folder.join(file);
            fs::write(&path, yaml(&definition).map_err(io::Error::other)?)?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
