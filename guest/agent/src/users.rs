//! Users and groups from `/etc/passwd` and `/etc/group`, parsed here: a static program has no name service.

use std::fs;

use agent_proto::abi;

use crate::fail::{Failure, Outcome};

/// Who a process runs as, and what a login knows of that user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one among them.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// The two files.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl Accounts {
    /// As they are now.
    pub(crate) fn read() -> Self {
        Self {
            passwd: fs::read_to_string("/etc/passwd").unwrap_or_default(),
            group: fs::read_to_string("/etc/group").unwrap_or_default(),
        }
    }

    /// Looks up `NAME`, `UID`, and either with `:GROUP` or `:GID`; empty is the user `agent`. A number needs no entry.
    ///
    /// # Errors
    /// Which of the two is not there.
    pub(crate) fn find(&self, wanted: &str) -> Outcome<User> {
        let wanted = if wanted.is_empty() { abi::AGENT_USER } else { wanted };
        let (name, group) = match wanted.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (wanted, None),
        };
        let number = name.parse::<u32>().ok();
        let entry = self.entries().find(|e| e.name == name || Some(e.uid) == number);
        let mut user = match entry {
            Some(entry) => User {
                name: entry.name.to_owned(),
                uid: entry.uid,
                gid: entry.gid,
                groups: self.groups_of(entry.name, entry.gid),
                home: entry.home.to_owned(),
                shell: if entry.shell.is_empty() { "/bin/sh".into() } else { entry.shell.to_owned() },
            },
            None => User {
                name: name.to_owned(),
                uid: number.ok_or_else(|| Failure::new(format!("There is no user {name:?}")))?,
                gid: 0,
                groups: vec![0],
                home: "/".into(),
                shell: "/bin/sh".into(),
            },
        };
        if let Some(group) = group {
            let id = self.group_id(group);
            user.gid = id.ok_or_else(|| Failure::new(format!("There is no group {group:?}")))?;
            user.groups = vec![user.gid];
        }
        Ok(user)
    }

    /// A group's number, by its name or the number itself.
    pub(crate) fn group_id(&self, wanted: &str) -> Option<u32> {
        let named = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok())?
        });
        named.or_else(|| wanted.parse().ok())
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1)?;
            Some(Entry { name, uid, gid, home, shell: fields.next().unwrap_or_default() })
        })
    }

    fn groups_of(&self, name: &str, primary: u32) -> Vec<u32> {
        let mut groups = vec![primary];
        for line in self.group.lines() {
            let mut fields = line.split(':');
            let gid = fields.nth(2).and_then(|gid| gid.parse().ok());
            let member = fields.next().is_some_and(|members| members.split(',').any(|m| m == name));
            if let Some(gid) = gid.filter(|gid| member && !groups.contains(gid)) {
                groups.push(gid);
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken\nagent:x:1000:1000::/home/agent:/bin/bash\nnobody:x:65534:65534:n:/nonexistent:\n".into(),
            group: "root:x:0:\nsudo:x:27:agent\ndocker:x:101:other,agent\nagent:x:1000:\nnear:x:7:agentx\n".into(),
        }
    }

    #[test]
    fn the_default_user_has_its_groups() {
        let user = accounts().find("").expect("agent");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1000, 1000, "/home/agent"));
        assert_eq!(user.groups, [1000, 27, 101]);
        assert_eq!(user.shell, "/bin/bash");
    }

    #[test]
    fn numbers_and_groups() {
        let accounts = accounts();
        assert_eq!(accounts.find("0").expect("root").name, "root");
        let stranger = accounts.find("4242").expect("a number needs no entry");
        assert_eq!((stranger.uid, stranger.gid, stranger.home.as_str()), (4242, 0, "/"));
        let grouped = accounts.find("agent:docker").expect("both are there");
        assert_eq!((grouped.gid, grouped.groups), (101, vec![101]));
        assert_eq!(accounts.find("agent:5").expect("a number").gid, 5);
        assert_eq!(accounts.find("nobody").expect("there").shell, "/bin/sh");
        let missing = |wanted: &str| accounts.find(wanted).expect_err("it is not there").to_string();
        assert_eq!(missing("nothere"), "There is no user \"nothere\"");
        assert_eq!(missing("agent:nothere"), "There is no group \"nothere\"");
        assert_eq!(missing("-1"), "There is no user \"-1\"");
        assert_eq!(missing("agent:"), "There is no group \"\"");
    }
}
