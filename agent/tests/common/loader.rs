//! Machines that are not there: each boots as its boot loader would, by reading the real thing that the loader reads.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A machine that can be switched off and on.
pub(crate) trait Machine {
    /// Boots, and says which slot: `a`, `b` or `none`. `trial`: the reboot asked for one, where that is how it is done.
    fn power_on(&self, trial: bool) -> &'static str;

    /// Whether a reboot has to ask for a trial.
    fn asks_for_trials(&self) -> bool {
        false
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// GRUB with the script of `docs/agent.md`.
pub(crate) struct Grub {
    pub(crate) environment: PathBuf,
}

impl Grub {
    pub(crate) fn new(environment: &Path) -> Self {
        run("grub-editenv", &[text(environment), "create"]);
        Self { environment: environment.to_owned() }
    }

    pub(crate) fn set(&self, assignment: &str) {
        run("grub-editenv", &[text(&self.environment), "set", assignment]);
    }

    pub(crate) fn list(&self) -> String {
        run("grub-editenv", &[text(&self.environment), "list"])
    }

    fn get(&self, name: &str) -> Option<String> {
        let list = self.list();
        let value = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        (!value.is_empty()).then(|| value.to_owned())
    }
}

impl Machine for Grub {
    fn power_on(&self, _: bool) -> &'static str {
        let next = self.get("next_entry");
        if next.is_some() {
            // `set next_entry=` and `save_env next_entry`.
            self.set("next_entry=");
        }
        match next.or_else(|| self.get("saved_entry")).as_deref() {
            Some("slot-a") => "a",
            Some("slot-b") => "b",
            _ => "none",
        }
    }
}

/// A mounted ext4, which GRUB reads without its journal.
pub(crate) struct Disk {
    image: PathBuf,
    pub(crate) mount: PathBuf,
}

impl Disk {
    pub(crate) fn new(dir: &Path) -> Self {
        let disk = Self { image: dir.join("disk.img"), mount: dir.join("disk") };
        fs::File::create(&disk.image).and_then(|file| file.set_len(32 << 20)).expect("a file");
        fs::create_dir_all(&disk.mount).expect("a directory");
        run("mkfs.ext4", &["-q", "-F", text(&disk.image)]);
        disk.attach();
        disk
    }

    fn attach(&self) {
        run("mount", &["-o", "loop", text(&self.image), text(&self.mount)]);
    }

    /// As after a shutdown: nothing is in the journal any more.
    pub(crate) fn remount(&self) {
        run("umount", &[text(&self.mount)]);
        self.attach();
    }

    /// What GRUB would read after a power cut now.
    pub(crate) fn grub_reads(&self, name: &str) -> String {
        let cut = self.image.with_extension("cut");
        fs::copy(&self.image, &cut).expect("copies");
        run("grub-fstest", &[text(&cut), "cat", &format!("/{name}")])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mount).status();
    }
}

/// U-Boot with a redundant environment in a file, and the script of `docs/agent.md`.
pub(crate) struct Uboot {
    pub(crate) config: PathBuf,
    environment: PathBuf,
}

/// Of one copy of the environment.
const COPY: usize = 0x2000;

impl Uboot {
    pub(crate) fn new(dir: &Path) -> Self {
        let [config, environment, defaults] =
            ["fw_env.config", "uboot.env", "uboot.default"].map(|name| dir.join(name));
        fs::write(&environment, [0; 2 * COPY]).expect("writes");
        let line = |at: usize| format!("{} {at:#x} {COPY:#x}\n", environment.display());
        fs::write(&config, line(0) + &line(COPY)).expect("writes");
        fs::write(&defaults, "BOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=3\n").expect("writes");
        run("fw_setenv", &["-c", text(&config), "-f", text(&defaults), "bootdelay", "2"]);
        Self { config, environment }
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let list = run("fw_printenv", &["-c", text(&self.config)]);
        list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    }

    /// Both copies of the environment.
    pub(crate) fn copies(&self) -> [Vec<u8>; 2] {
        let bytes = fs::read(&self.environment).expect("reads");
        [bytes[..COPY].to_vec(), bytes[COPY..].to_vec()]
    }

    pub(crate) fn restore(&self, copies: &[Vec<u8>; 2]) {
        fs::write(&self.environment, copies.concat()).expect("writes");
    }
}

impl Machine for Uboot {
    fn power_on(&self, _: bool) -> &'static str {
        let order = self.get("BOOT_ORDER").expect("there is an order");
        let set = |variable: &str, left: u32| {
            run("fw_setenv", &["-c", text(&self.config), variable, &left.to_string()]);
        };
        loop {
            for name in order.split_whitespace() {
                let variable = format!("BOOT_{name}_LEFT");
                let left: u32 = self.get(&variable).and_then(|text| text.parse().ok()).unwrap_or(0);
                if left > 0 {
                    set(&variable, left - 1);
                    return if name == "A" { "a" } else { "b" };
                }
            }
            let tried = self.get("fleetwave_try").unwrap_or_default();
            let a = matches!((&*order, &*tried), ("A B", "") | ("B A", "b"));
            set(if a { "BOOT_A_LEFT" } else { "BOOT_B_LEFT" }, 3);
        }
    }
}

/// A Raspberry Pi, whose slots boot from partitions 2 and 3. Its first partition is a FAT image on a loop device,
/// mounted; or, where the kernel has no FAT, a directory whose file is put into the image before each boot.
pub(crate) struct Tryboot {
    image: PathBuf,
    mount: PathBuf,
    device: Option<String>,
    pub(crate) device_tree: PathBuf,
}

impl Tryboot {
    pub(crate) fn new(dir: &Path) -> Self {
        let [image, mount, device_tree] = ["first.img", "first", "device-tree"].map(|name| dir.join(name));
        fs::File::create(&image).and_then(|file| file.set_len(4 << 20)).expect("an image");
        run("mkfs.vfat", &["-n", "first", text(&image)]);
        fs::create_dir_all(&mount).expect("a directory");
        fs::create_dir_all(&device_tree).expect("a directory");
        let device = kernel_has_fat().then(|| {
            let device = run("losetup", &["--find", "--show", text(&image)]).trim().to_owned();
            run("mount", &[&device, text(&mount)]);
            device
        });
        // As an image builder would write it.
        let text = "[all]\ntryboot_a_b=1\nboot_partition=2\n\n[tryboot]\nboot_partition=3\n";
        fs::write(mount.join("autoboot.txt"), text).expect("writes");
        run("sync", &[]);
        let machine = Self { image, mount, device, device_tree };
        machine.power_on(false);
        machine
    }

    pub(crate) fn autoboot(&self) -> PathBuf {
        self.mount.join("autoboot.txt")
    }

    /// What is on the card now, whatever the mounted file system still holds back.
    pub(crate) fn image(&self) -> Vec<u8> {
        fs::read(&self.image).expect("reads")
    }
}

/// Whether the kernel can mount a FAT file system.
pub(crate) fn kernel_has_fat() -> bool {
    fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.lines().any(|line| line.trim() == "vfat"))
}

impl Drop for Tryboot {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let _ = Command::new("umount").arg(&self.mount).status();
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

impl Machine for Tryboot {
    fn asks_for_trials(&self) -> bool {
        true
    }

    fn power_on(&self, trial: bool) -> &'static str {
        if self.device.is_none() {
            run("mcopy", &["-o", "-i", text(&self.image), text(&self.autoboot()), "::autoboot.txt"]);
        }
        let partition = autoboot(&self.image, trial);
        fs::write(self.device_tree.join("partition"), partition.unwrap_or(1).to_be_bytes()).expect("writes");
        match partition {
            Some(2) => "a",
            Some(3) => "b",
            _ => "none",
        }
    }
}

/// The partition that the firmware boots from, by the `autoboot.txt` in an image of the first one.
pub(crate) fn autoboot(image: &Path, trial: bool) -> Option<u32> {
    let text = run("mtype", &["-i", text(image), "::autoboot.txt"]);
    assert!(text.len() <= 512, "the firmware reads no more");
    let (mut applies, mut partition) = (true, None);
    for line in text.lines() {
        match line.trim() {
            "[all]" => applies = true,
            "[tryboot]" => applies = trial,
            line => {
                if let Some(number) = line.strip_prefix("boot_partition=").filter(|_| applies) {
                    partition = number.parse().ok();
                }
            }
        }
    }
    partition
}
