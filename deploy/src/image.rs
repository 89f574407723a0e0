//! The guest's kernel and its initramfs.
//!
//! The kernel is Debian's image package, unpacked by `deploy/test` under the lab's folder and never installed. The
//! initramfs is one uncompressed archive: the agent as `/init`, the modules that a NIC needs, busybox for a shell.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::error::{Context, Error, Result};
use crate::{ensure, lab};

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// The release, `6.12.117+deb12-amd64`.
    pub release: String,
}

impl Kernel {
    /// Finds the newest kernel that `deploy/test` unpacked.
    pub fn find() -> Result<Kernel> {
        let folder = lab::root()?.join("kernel");
        let mut found: Vec<Kernel> = Vec::new();
        for package in fs::read_dir(&folder).into_iter().flatten().flatten() {
            for boot in fs::read_dir(package.path().join("boot")).into_iter().flatten().flatten() {
                let name = boot.file_name().to_string_lossy().into_owned();
                let Some(release) = name.strip_prefix("vmlinuz-") else { continue };
                let modules = ["lib/modules", "usr/lib/modules"]
                    .map(|folder| package.path().join(folder).join(release))
                    .into_iter()
                    .find(|folder| folder.is_dir());
                if let Some(modules) = modules {
                    found.push(Kernel { image: boot.path(), modules, release: release.to_string() });
                }
            }
        }
        found.sort_by_key(|kernel| version_key(&kernel.release));
        found.pop().ok_or_else(|| {
            Error::new(format!(
                "no guest kernel under {}: run deploy/test, which unpacks one",
                folder.display()
            ))
        })
    }

    /// The named modules and all that they need, in an order in which they load. What is built into the kernel is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let built_in = fs::read_to_string(self.modules.join("modules.builtin"))
            .context(|| format!("{}/modules.builtin", self.modules.display()))?;
        let built_in: BTreeSet<String> = built_in.lines().map(|line| module_name(Path::new(line))).collect();
        let mut files = Vec::new();
        list_modules(&self.modules.join("kernel"), &mut files)?;
        let mut loaded = Vec::new();
        for name in names {
            self.add(name, &built_in, &files, &mut loaded, 0)?;
        }
        Ok(loaded)
    }

    /// Adds a module after those that it needs; `depth` ends a circle that should not be there.
    fn add(
        &self,
        name: &str,
        built_in: &BTreeSet<String>,
        files: &[PathBuf],
        loaded: &mut Vec<Module>,
        depth: u32,
    ) -> Result<()> {
        let name = name.replace('-', "_");
        if built_in.contains(&name) || loaded.iter().any(|module| module.name == name) {
            return Ok(());
        }
        ensure!(depth < 32, "module {name} needs itself");
        let path = files
            .iter()
            .find(|path| module_name(path) == name)
            .ok_or_else(|| Error::new(format!("kernel {} has no module {name}", self.release)))?;
        let bytes = decompressed(path)?;
        for needed in dependencies(&bytes) {
            self.add(&needed, built_in, files, loaded, depth + 1)?;
        }
        loaded.push(Module { name, bytes });
        Ok(())
    }
}

/// A kernel module, ready to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// With underscores, as the kernel shows it.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// Writes an initramfs with the agent as its first process and the modules for it to load.
pub fn write_initramfs(kernel: &Kernel, modules: &[&str], to: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.folder(folder);
    }
    let agent = agent()?;
    archive.file("init", 0o755, &fs::read(&agent).context(|| agent.display().to_string())?);
    for (position, module) in kernel.modules(modules)?.iter().enumerate() {
        archive.file(&format!("modules/{position:02}-{}.ko", module.name), 0o644, &module.bytes);
    }
    let busybox = fs::read(BUSYBOX)
        .context(|| format!("{BUSYBOX} (run deploy/test, which installs busybox-static)"))?;
    archive.file("bin/busybox", 0o755, &busybox);
    fs::write(to, archive.finish()).context(|| to.display().to_string())
}

/// Adds an archive to the end of an initramfs: the kernel unpacks one archive after the other.
pub fn append_archive(archive: Archive, to: &Path) -> Result<()> {
    let mut file = fs::File::options().append(true).open(to).context(|| to.display().to_string())?;
    file.write_all(&archive.finish()).context(|| to.display().to_string())
}

/// The agent's program, built statically; built anew when its source changed, once in a process.
pub fn agent() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build_agent().map_err(|error| error.to_string())).clone().map_err(Error::new)
}

fn build_agent() -> Result<PathBuf> {
    let target = lab::root()?.join("agent");
    let status = cargo()
        .args(["build", "--quiet", "--release", "--package", "ringway-lab", "--bin", "ringway-guest"])
        // With a target named, the flags reach the agent but not build scripts and macros.
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context(|| "cargo".into())?;
    ensure!(status.success(), "the guest's agent could not be built ({status})");
    Ok(target.join(TRIPLE).join("release/ringway-guest"))
}

/// Cargo, in this workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command
}

/// A cpio archive in the "new ASCII" format, which the kernel unpacks at boot.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder; its parents must have been added.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, 0o040_755, &[]);
    }

    /// Adds a file; its folders must have been added.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, 0o100_000 | permissions, content);
    }

    /// Adds a symbolic link; its folder must have been added.
    pub fn link(&mut self, path: &str, to: &str) {
        self.entry(path, 0o120_777, to.as_bytes());
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,         // inode
            mode,                 //
            0,                    // owner
            0,                    // group
            1,                    // links
            0,                    // modification time: none, so that equal content makes an equal archive
            content.len() as u32, //
            0,                    // device, major
            0,                    // device, minor
            0,                    // special file, major
            0,                    // special file, minor
            path.len() as u32 + 1,
            0, // checksum: not in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// `depends=a,b` in a module's `.modinfo` section: strings that end in zero bytes.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let text = module[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).split(',').filter(|name| !name.is_empty()).map(str::to_string).collect()
}

/// A module file's content: Debian compresses with xz.
fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).context(|| path.display().to_string())?;
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(bytes);
    }
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "xz (run deploy/test, which installs xz-utils)".into())?;
    let mut input = child.stdin.take().ok_or_else(|| Error::new("xz: no pipe"))?;
    let writer = std::thread::spawn(move || -> io::Result<()> { input.write_all(&bytes) });
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success() && matches!(writer.join(), Ok(Ok(()))),
        "xz could not unpack {}",
        path.display()
    );
    Ok(output.stdout)
}

fn list_modules(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_modules(&entry.path(), into)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            into.push(entry.path());
        }
    }
    Ok(())
}

/// `kernel/net/core/failover.ko.xz` is `failover`.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// Orders releases as people do: 6.12.9 before 6.12.117.
fn version_key(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
pub(crate) const BUSYBOX: &str = "/bin/busybox";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_has_the_formats_header_padding_and_trailer() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        // The second entry: 110 bytes of header + "bin" and its zero byte = 114, padded to 116.
        let second = &bytes[116..];
        assert_eq!(&second[..6], b"070701");
        assert_eq!(&second[14..22], b"000081ed");
        assert_eq!(&second[54..62], b"00000005");
        assert_eq!(&second[110..115], b"init\0");
        assert_eq!(&second[116..121], b"hello");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"\x7fELF...\0license=GPL\0depends=failover,net_failover\0name=x\0";
        assert_eq!(dependencies(module), ["failover", "net_failover"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn module_names_and_releases_compare_as_people_do() {
        assert_eq!(module_name(Path::new("kernel/a/net-failover.ko.xz")), "net_failover");
        assert!(version_key("6.12.9+deb12-amd64") < version_key("6.12.117+deb12-amd64"));
    }
}
