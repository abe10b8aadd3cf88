//! What the kernel's command line asks of the agent.

use std::path::PathBuf;

use crate::volumes;

/// Linux's `HOST_NAME_MAX`.
const MAX_HOSTNAME: usize = 64;

/// The `ember.` parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    /// `ember.root`: the block device with the root file system. Without one, the guest lives in
    /// its initramfs.
    pub(super) root: Option<PathBuf>,
    /// `ember.rootfstype`: its type, if it is not to be found out.
    pub(super) root_type: Option<String>,
    /// `ember.port`: the host's vsock port.
    pub(super) port: u32,
    /// `ember.overlay`: where what is written over the root is kept.
    pub(super) overlay: Overlay,
    /// `ember.hostname`.
    pub(super) hostname: Option<String>,
    /// `ember.volume`: the block device of each volume, and the path that it is at.
    pub(super) volumes: Vec<(PathBuf, PathBuf)>,
}

/// Where what is written over the root is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Overlay {
    /// In memory, at most so much as tmpfs(5) takes it.
    Memory(String),
    /// On the ext4 file system of a block device.
    Device(PathBuf),
}

/// A parameter that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} is not {wanted}")]
pub(super) struct ParameterError {
    name: String,
    value: String,
    wanted: &'static str,
}

impl Parameters {
    /// Reads `/proc/cmdline`. The last setting of a parameter counts, as for the kernel, but for
    /// volumes, of which there can be several; what is not the agent's is left alone.
    pub(super) fn parse(line: &[u8]) -> Result<Self, ParameterError> {
        let line = String::from_utf8_lossy(line);
        let mut parameters = Self {
            root: None,
            root_type: None,
            port: 1024,
            overlay: Overlay::Memory("50%".to_owned()),
            hostname: None,
            volumes: Vec::new(),
        };
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let Some(name) = name.strip_prefix("ember.") else {
                continue;
            };
            let refuse = |wanted| {
                let (name, value) = (format!("ember.{name}"), value.to_owned());
                Err(ParameterError {
                    name,
                    value,
                    wanted,
                })
            };
            match name {
                "root" if value.starts_with('/') => parameters.root = Some(value.into()),
                "root" => return refuse("the path of a block device"),
                "rootfstype" if is_word(value) => parameters.root_type = Some(value.to_owned()),
                "rootfstype" => return refuse("the name of a file system"),
                "port" => match value.parse() {
                    Ok(port) => parameters.port = port,
                    Err(_) => return refuse("a port"),
                },
                "overlay" if is_size(value) => {
                    parameters.overlay = Overlay::Memory(value.to_owned());
                }
                "overlay" if value.starts_with("/dev/") => {
                    parameters.overlay = Overlay::Device(value.into());
                }
                "overlay" => return refuse("a size such as 512m or 50%, or a block device"),
                "hostname" if is_word(value) && value.len() <= MAX_HOSTNAME => {
                    parameters.hostname = Some(value.to_owned());
                }
                "hostname" => return refuse("a host name of letters, digits, dots and hyphens"),
                "volume" => match volumes::parse(value) {
                    Some(volume) => parameters.volumes.push(volume),
                    None => return refuse("a block device and, behind a colon, an absolute path"),
                },
                _ => {}
            }
        }
        Ok(parameters)
    }
}

fn is_word(value: &str) -> bool {
    !value.is_empty()
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

fn is_size(value: &str) -> bool {
    let digits = value
        .strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', '%'])
        .unwrap_or(value);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_line() {
        let line = b"console=ttyS0 quiet ember.root=/dev/vda ember.port=5000 ember.overlay=64m \
            ember.hostname=box-1 ember.volume=/dev/vdb:/a%20b ember.rootfstype=erofs \
            ember.volume=/dev/vdc:/c root=/dev/sda\n";
        let parameters = Parameters::parse(line).unwrap();
        let expected = Parameters {
            root: Some("/dev/vda".into()),
            root_type: Some("erofs".into()),
            port: 5000,
            overlay: Overlay::Memory("64m".into()),
            hostname: Some("box-1".into()),
            volumes: vec![
                ("/dev/vdb".into(), "/a b".into()),
                ("/dev/vdc".into(), "/c".into()),
            ],
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn nothing_given_is_the_default() {
        let parameters = Parameters::parse(b"quiet ember ember.other=1 \xff").unwrap();
        assert_eq!(parameters.port, 1024);
        assert_eq!(parameters.overlay, Overlay::Memory("50%".to_owned()));
        assert_eq!(parameters.root, None);
    }

    #[test]
    fn the_last_setting_counts() {
        assert_eq!(
            Parameters::parse(b"ember.port=1 ember.port=2")
                .unwrap()
                .port,
            2
        );
        let parameters = Parameters::parse(b"ember.overlay=1g ember.overlay=/dev/vdb").unwrap();
        assert_eq!(parameters.overlay, Overlay::Device("/dev/vdb".into()));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |line: &str| Parameters::parse(line.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused("ember.port=x"), "ember.port=\"x\" is not a port");
        for line in [
            "ember.port=4294967296",
            "ember.root=vda",
            "ember.overlay=",
            "ember.overlay=%",
            "ember.overlay=1m,mode=777",
            "ember.overlay=vdb",
            "ember.hostname=",
            "ember.hostname=a/b",
            "ember.rootfstype=a,b",
            "ember.volume=/dev/vdb",
            "ember.volume=/dev/vdb:data",
        ] {
            refused(line);
        }
        refused(&format!("ember.hostname={}", "x".repeat(65)));
    }
}
