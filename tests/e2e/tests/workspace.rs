//! Point 3: the folder is live in both directions at the same path, and nothing else of the host is there.

use std::os::unix::fs::MetadataExt;

use e2e::{Case, World, ensure, say};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("what_the_guest_writes_is_on_the_host", guest_writes),
    ("what_the_host_writes_is_in_the_guest", host_writes),
    ("a_further_folder_may_be_read_only", read_only),
    ("a_read_only_folder_within_a_writable_one_is_refused", nested_read_only),
    ("what_is_named_later_is_shared_at_the_next_start_or_refused", later),
    ("a_share_that_the_guest_made_a_link_is_not_followed", swapped),
    ("a_folder_with_an_underscore_starts", underscore),
    ("nothing_else_of_the_host_is_there", nothing_else),
    ("links_do_not_lead_out", links),
    ("git_clone_works_on_it", git),
    ("npm_install_of_local_packages_works_on_it", npm),
    ("twenty_thousand_files_work_on_it", many_files),
];

fn guest_writes(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "printf 'of the guest' > made; mkdir -p deep/er; chmod 750 deep; mv made deep/er/moved; ln -sf er/moved deep/link")?;
    let made = folder.join("deep/er/moved");
    ensure(std::fs::read(&made)? == b"of the guest", "other content")?;
    ensure(
        std::fs::metadata(&made)?.uid() == rustix::process::geteuid().as_raw(),
        "it does not belong to the caller",
    )?;
    ensure(std::fs::read(folder.join("deep/link"))? == b"of the guest", "the link does not work on the host")
}

fn host_writes(world: &World) -> Case {
    let folder = world.project("main");
    std::fs::write(folder.join("changing"), "first")?;
    ensure(world.shell_ok(&folder, "cat changing")? == "first", "the first content")?;
    std::fs::write(folder.join("changing"), "second, and longer")?;
    ensure(
        world.shell_ok(&folder, "cat changing; stat -c ' %U %s' changing")? == "second, and longer agent 18",
        "the second content",
    )?;
    std::fs::remove_file(folder.join("changing"))?;
    ensure(world.shell_ok(&folder, "test -e changing || echo gone")? == "gone", "it is deleted")
}

/// A command never runs with another share, or other rights, than its user has just asked for without a word.
fn later(world: &World) -> Case {
    let (folder, other) = (world.project("later"), world.project("other later"));
    std::fs::write(other.join("facts"), "42")?;
    world.shell_ok(&folder, "true")?;
    let of = |first: &str, script: &str| {
        let share = other.display().to_string();
        say(world.viv(&folder, ["run", "shell", first, &share, "--", "-c", script]), b"")
    };
    let script = format!("cat '{}/facts'; touch written && echo written", other.display());
    let refused = of(".:ro", &script)?;
    ensure(refused.code == 125 && refused.err.contains("runs already"), format!("{refused:?}"))?;
    world.run(&["stop", "shell-later"])?;
    let said = of(".:ro", &script)?;
    ensure(said.text() == "42" && said.code == 1, format!("{said:?}"))?;
    ensure(!folder.join("written").exists(), "a read-only workspace was written to")?;
    // Named without :ro it stays what it is, and that is said.
    let said = of(".", "touch written; true")?;
    ensure(said.code == 0 && said.err.contains("read-only"), format!("{said:?}"))?;
    ensure(!folder.join("written").exists(), "a read-only workspace was written to")?;
    world.run(&["rm", "-f", "shell-later"]).map(|_| ())
}

fn read_only(world: &World) -> Case {
    let (folder, other) = (world.project("readonly"), world.project("reference data"));
    std::fs::write(other.join("facts"), "42")?;
    let share = format!("{}:ro", other.display());
    // The bind at its path is the agent's and may be undone by root; what holds is the file server beneath it.
    let script = format!(
        r#"p='{0}'; cat "$p/facts"
try() {{ "$@" 2>/dev/null && echo "wrote: $*" || echo refused; }}
try touch "$p/new"
try sudo touch "$p/new"
try sudo touch /run/vivarium/shares/1/new
try sudo sh -c "echo 7 > /run/vivarium/shares/1/facts"
sudo mount -o remount,rw,bind "$p" && echo remounted
try sudo touch "$p/new"
try sudo mv "$p/facts" "$p/moved"
sudo umount "$p"; sudo mount --bind /run/vivarium/shares/1 "$p"
try sudo touch "$p/new"
cat "$p/facts""#,
        other.display()
    );
    let said = say(world.viv(&folder, ["run", "shell", ".", &share, "--", "-c", &script]), b"")?;
    let refused = "refused\n".repeat(4);
    let expected = format!("42{refused}remounted\nrefused\nrefused\nrefused\n42");
    ensure(said.text() == expected, format!("{said:?}"))?;
    ensure(std::fs::read(other.join("facts"))? == b"42", "a file of a read-only folder was changed")?;
    ensure(!other.join("new").exists(), "a read-only folder was written to")
}

fn nested_read_only(world: &World) -> Case {
    let folder = world.project("nested");
    std::fs::create_dir_all(folder.join("vendor"))?;
    let said =
        say(world.viv(&folder, ["run", "shell", ".", "vendor:ro", "--", "-c", "touch vendor/x"]), b"")?;
    ensure(said.code == 125 && said.err.contains("which the sandbox may write"), format!("{said:?}"))?;
    ensure(!folder.join("vendor/x").exists(), "it was written to")
}

/// One sandbox has the outer folder, another one a folder in it. The first swaps the second's for a link to elsewhere.
fn swapped(world: &World) -> Case {
    let (outer, secret) = (world.project("outer"), world.project("secret place"));
    std::fs::write(secret.join("secret"), "not for the guest")?;
    let inner = world.project("outer/inner");
    world.shell_ok(&inner, "true")?;
    ensure(world.run(&["stop", "shell-inner"])?.code == 0, "it stops")?;
    let script = format!("mv inner moved && ln -s '{}' inner", secret.display());
    world.shell_ok(&outer, &script)?;
    let said = world.run(&["exec", "shell-inner", "cat", "secret"])?;
    ensure(said.code == 125 && said.err.contains("symbolic link"), format!("{said:?}"))?;
    ensure(said.out.is_empty(), format!("{said:?}"))?;

    // Another folder in its place is not taken by itself either, until the user names it.
    std::fs::remove_file(outer.join("inner"))?;
    std::fs::create_dir(outer.join("inner"))?;
    let said = world.run(&["exec", "shell-inner", "true"])?;
    ensure(said.code == 125 && said.err.contains("another folder"), format!("{said:?}"))?;
    ensure(world.shell_ok(&inner, "pwd")? == inner.display().to_string(), "named again")?;
    for name in ["shell-inner", "shell-outer"] {
        world.run(&["rm", "-f", name])?;
    }
    Ok(())
}

/// An underscore may be in a sandbox's name and in no host name.
fn underscore(world: &World) -> Case {
    let folder = world.project("my_project");
    ensure(world.shell_ok(&folder, "hostname")? == "shell-my-project", "its host name")?;
    let said = world.run(&["exec", "shell-my_project", "cat", "/etc/hostname"])?;
    ensure(said.text() == "shell-my-project", format!("{said:?}"))?;
    world.run(&["rm", "-f", "shell-my_project"]).map(|_| ())
}

fn nothing_else(world: &World) -> Case {
    let folder = world.project("main");
    let secret = world.project("beside").join("secret");
    std::fs::write(&secret, "not for the guest")?;
    let script = format!(
        "sudo cat '{0}' 2>/dev/null; sudo ls '{1}/..'; sudo cat '{1}/../beside/secret' 2>/dev/null; true",
        secret.display(),
        folder.display()
    );
    let said = world.shell_ok(&folder, &script)?;
    ensure(said == "main", format!("the guest saw {said:?}"))
}

/// Links that the guest makes are the guest's affair: the host never follows them.
fn links(world: &World) -> Case {
    let folder = world.project("main");
    let script =
        "ln -sfn /etc out; ln -sfn ../beside up; cat out/hostname; cat up/secret 2>/dev/null || echo nothing";
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "shell-main\nnothing", said)
}

fn git(world: &World) -> Case {
    let folder = world.project("main");
    let script = r#"set -e
rm -rf origin copy; git init -q origin; cd origin
git config user.email e@e; git config user.name e
for i in $(seq 50); do mkdir -p d$i; echo $i > d$i/f; done
git add . && git commit -qm one
cd .. && git clone -q origin copy && cd copy && git status --porcelain | wc -l && git ls-files | wc -l && git fsck 2>&1 | wc -l"#;
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "0\n50\n0", said)
}

fn npm(world: &World) -> Case {
    let folder = world.project("npm");
    let script = r#"set -e
rm -rf packages app; mkdir -p packages app
for i in $(seq 12); do
  mkdir -p packages/p$i/lib
  echo "{\"name\":\"p$i\",\"version\":\"1.0.$i\",\"main\":\"lib/index.js\"}" > packages/p$i/package.json
  echo "module.exports = $i;" > packages/p$i/lib/index.js
  (cd packages && tar czf p$i.tgz --transform 's,^p[0-9]*,package,' p$i)
done
cd app && echo '{"name":"app","version":"1.0.0"}' > package.json
npm install --offline --no-audit --no-fund --loglevel=error ../packages/*.tgz >/dev/null
node -p 'let s = 0; for (let i = 1; i <= 12; i++) s += require("p" + i); s'"#;
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "78", said)?;
    ensure(
        folder.join("app/node_modules/p12/package.json").exists(),
        "the host does not see the installed package",
    )
}

fn many_files(world: &World) -> Case {
    let folder = world.project("files");
    let script = r#"set -e
python3 - <<'P'
import os
for d in range(200):
    os.makedirs(f"t/{d}", exist_ok=True)
    for f in range(100):
        with open(f"t/{d}/{f}", "w") as out: out.write(str(d * 100 + f))
P
find t -type f | wc -l
cat t/199/99"#;
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "20000\n19999", said)?;
    let mut count = 0;
    for entry in std::fs::read_dir(folder.join("t"))? {
        count += std::fs::read_dir(entry?.path())?.count();
    }
    ensure(count == 20_000, format!("the host sees {count} files"))?;
    world.shell_ok(&folder, "rm -r t")?;
    ensure(!folder.join("t").exists(), "the host still sees the deleted tree")
}
