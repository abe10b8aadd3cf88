//! Users and groups, from the root's own files.
//!
//! Read by hand: the C library's look-up loads plug-ins (NSS), which a static program cannot. The
//! files are the guest's and may say anything, so their size is bounded and a line that is not
//! understood is no line.

use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use crate::protocol::{ErrorCode, Failure};

/// More than this is not read of either file.
const MAX_FILE: u64 = 1024 * 1024;
/// Linux's `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65_536;

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: Vec<u8>,
    pub(crate) home: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups beside `gid`.
    pub(crate) groups: Vec<u32>,
}

impl User {
    /// Root, whom every system calls the same.
    pub(crate) fn root() -> Self {
        Self {
            name: b"root".to_vec(),
            home: b"/root".to_vec(),
            uid: 0,
            gid: 0,
            groups: vec![],
        }
    }

    /// Looks `name`, `uid`, `name:group` or `uid:gid` up in the guest's files.
    pub(crate) fn look_up(specification: &[u8]) -> Result<Self, Failure> {
        find(specification, || read("/etc/passwd"), || read("/etc/group"))
    }
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes)?,
        // An image without users still has numbers.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(bytes)
}

fn find(
    specification: &[u8],
    passwd: impl FnOnce() -> io::Result<Vec<u8>>,
    group: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<User, Failure> {
    let (wanted, wanted_group) = match specification.iter().position(|&byte| byte == b':') {
        Some(colon) => (&specification[..colon], Some(&specification[colon + 1..])),
        None => (specification, None),
    };
    let missing = |what: &str, name: &[u8], file: &str| {
        let name = String::from_utf8_lossy(name);
        let message = format!("the {what} {name:?} is not in the guest's {file}");
        Failure::new(ErrorCode::NoSuchUser, message)
    };
    let unreadable = |file: &'static str| {
        move |error: io::Error| {
            Failure::new(ErrorCode::Internal, format!("cannot read {file}: {error}"))
        }
    };

    let passwd = passwd().map_err(unreadable("/etc/passwd"))?;
    let group = group().map_err(unreadable("/etc/group"))?;
    let accounts = || entries(&passwd).filter_map(Account::parse);
    let account = accounts()
        .find(|account| account.name == wanted)
        .or_else(|| {
            let uid = number(wanted)?;
            accounts().find(|account| account.uid == uid)
        });
    let mut user = match account {
        Some(account) => User {
            name: account.name.to_vec(),
            home: account.home.to_vec(),
            uid: account.uid,
            gid: account.gid,
            groups: Vec::new(),
        },
        // A number needs no entry. It gets the group of the same number, never root's.
        None => match number(wanted) {
            Some(uid) => User {
                name: wanted.to_vec(),
                home: b"/".to_vec(),
                uid,
                gid: uid,
                groups: Vec::new(),
            },
            None => return Err(missing("user", wanted, "/etc/passwd")),
        },
    };
    let groups = || entries(&group).filter_map(Group::parse);
    if let Some(wanted) = wanted_group {
        let gid = groups().find(|it| it.name == wanted).map(|it| it.gid);
        user.gid = gid
            .or_else(|| number(wanted))
            .ok_or_else(|| missing("group", wanted, "/etc/group"))?;
    }
    user.groups = groups()
        .filter(|it| it.gid != user.gid && it.has_member(&user.name))
        .map(|it| it.gid)
        .take(MAX_GROUPS)
        .collect();
    Ok(user)
}

fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|&byte| byte == b'\n')
        .map(|line| line.split(|&byte| byte == b':').collect())
}

/// A user's or group's number. The highest means "leave it" to the system calls (setresuid(2)).
fn number(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    u32::from_str(text)
        .ok()
        .filter(|&number| number != u32::MAX)
}

/// A line of passwd(5).
struct Account<'a> {
    name: &'a [u8],
    home: &'a [u8],
    uid: u32,
    gid: u32,
}

impl<'a> Account<'a> {
    #[expect(clippy::needless_pass_by_value, reason = "a step of an iterator")]
    fn parse(fields: Vec<&'a [u8]>) -> Option<Self> {
        let [name, _password, uid, gid, _comment, home, _shell] = fields[..] else {
            return None;
        };
        let valid = !name.is_empty() && !home.contains(&0) && !name.contains(&0);
        valid.then_some(Self {
            name,
            home,
            uid: number(uid)?,
            gid: number(gid)?,
        })
    }
}

/// A line of group(5).
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    #[expect(clippy::needless_pass_by_value, reason = "a step of an iterator")]
    fn parse(fields: Vec<&'a [u8]>) -> Option<Self> {
        let [name, _password, gid, members] = fields[..] else {
            return None;
        };
        (!name.is_empty()).then_some(Self {
            name,
            gid: number(gid)?,
            members,
        })
    }

    fn has_member(&self, user: &[u8]) -> bool {
        self.members
            .split(|&byte| byte == b',')
            .any(|member| member == user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken:x:1\n\
        worse:x:many:1::/:/bin/sh\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        forty-two:x:42:42::/:/bin/sh\n\
        42:x:7:7:a name of digits:/seven:/bin/sh\n\
        ann:x:1000:1000:Ann,,,:/home/ann:/bin/bash";
    const GROUP: &[u8] = b"root:x:0:\nann:x:1000:\naudio:x:29:ann,bob\nvideo:x:44:bob\n\
        docker:x:999:x,ann\nstaff:x:50:annabel\nbad:x:no:ann\n";

    fn look_up(specification: &str) -> Result<User, String> {
        let files = (|| Ok(PASSWD.to_vec()), || Ok(GROUP.to_vec()));
        find(specification.as_bytes(), files.0, files.1).map_err(|failure| {
            assert_eq!(failure.code(), ErrorCode::NoSuchUser);
            failure.to_string()
        })
    }

    #[test]
    fn by_name_and_by_number() {
        let ann = look_up("ann").unwrap();
        assert_eq!((ann.uid, ann.gid), (1000, 1000));
        assert_eq!(ann.home, b"/home/ann");
        assert_eq!(ann.groups, [29, 999]);
        assert_eq!(look_up("1000").unwrap(), ann);
        assert_eq!(look_up("root").unwrap(), User::root());
        // As everywhere, a name of digits is a name first.
        assert_eq!(look_up("42").unwrap().uid, 7);
    }

    #[test]
    fn with_a_group() {
        assert_eq!(look_up("ann:video").unwrap().gid, 44);
        let in_audio = look_up("ann:29").unwrap();
        assert_eq!((in_audio.gid, in_audio.groups), (29, vec![999]));
        assert_eq!(look_up("5:6").unwrap().gid, 6);
    }

    #[test]
    fn numbers_need_no_entry() {
        let user = look_up("12345").unwrap();
        assert_eq!((user.uid, user.gid), (12345, 12345));
        assert_eq!(user.home, b"/");
        assert!(user.groups.is_empty());
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert_eq!(
            look_up("bob").unwrap_err(),
            "the user \"bob\" is not in the guest's /etc/passwd"
        );
        assert_eq!(
            look_up("ann:wheel").unwrap_err(),
            "the group \"wheel\" is not in the guest's /etc/group"
        );
        for wrong in [
            "broken",
            "worse",
            "",
            ":",
            "-1",
            "+1",
            "4294967295",
            "99999999999",
            "ann:",
        ] {
            look_up(wrong).unwrap_err();
        }
    }

    #[test]
    fn files_of_nonsense_are_no_users() {
        let nonsense = || Ok(vec![b':'; 100_000]);
        find(b"x", nonsense, nonsense).unwrap_err();
        let nonsense = || Ok((0..=255).cycle().take(100_000).collect());
        find(b"x", nonsense, nonsense).unwrap_err();
    }
}
