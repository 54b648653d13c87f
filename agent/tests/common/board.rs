//! A board in QEMU with a real U-Boot, Debian's, and the script of `docs/agent.md`. Its kernels are scripts that say
//! which slot they are, and switch it off.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::loader::{Machine, run, text};
use crate::real::{have, have_file};

const UBOOT: &str = "/usr/lib/u-boot/qemu_arm/u-boot.bin";
/// Of the flash, which has the environment at its start.
const FLASH: u64 = 64 << 20;
const ENVIRONMENT: usize = 0x40000;
/// Of each partition.
const MIB: u64 = 1 << 20;
/// More often than this it does not start anew before it says that nothing boots.
const RESETS: usize = 10;

pub(crate) struct Board {
    dir: PathBuf,
    pub(crate) config: PathBuf,
}

/// The boot script of the documentation, for a disk that is no card, and for kernels that are scripts.
fn script() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.md");
    let docs = fs::read_to_string(path).expect("the documentation");
    let (_, script) = docs.split_once("```\n# The boot script\n").expect("there is one");
    let (script, _) = script.split_once("```").expect("it ends");
    let replaced = [
        ("load mmc 0:", "load virtio 0:"),
        ("bootz ${kernel_addr_r} - ${fdt_addr_r}", "source ${kernel_addr_r}"),
    ];
    replaced.iter().fold(script.to_owned(), |script, (from, to)| {
        assert!(script.contains(from), "{from}");
        script.replace(from, to)
    })
}

impl Board {
    /// Whether everything for it is there.
    pub(crate) fn can_be() -> bool {
        let tools = ["fw_setenv", "qemu-system-arm", "mkimage", "mkfs.ext4", "sfdisk"];
        tools.into_iter().all(have) && have_file(UBOOT, "u-boot-qemu")
    }

    pub(crate) fn new(dir: &Path) -> Self {
        let board = Self { dir: dir.to_owned(), config: dir.join("fw_env.config") };
        let disk = fs::File::create(dir.join("disk")).and_then(|disk| disk.set_len(8 * MIB).map(|()| disk));
        disk.expect("a disk");
        let sectors = MIB / 512;
        let line = |number, mib| format!("{number}: start={}, size={sectors}\n", mib * sectors);
        let table = format!("label: gpt\n{}{}{}", line(1, 1), line(5, 3), line(6, 5));
        fs::write(dir.join("table"), table).expect("writes");
        run("sh", &["-c", "PATH=$PATH:/usr/sbin:/sbin; sfdisk -q \"$0/disk\" <\"$0/table\"", text(dir)]);
        board.fill(1, &[("boot.scr", &script())]);
        for slot in ["a", "b"] {
            board.holds(slot, true);
        }
        fs::File::create(dir.join("flash")).and_then(|flash| flash.set_len(FLASH)).expect("a flash");
        let place = format!("{} 0x0 {ENVIRONMENT:#x}\n", dir.join("flash").display());
        fs::write(&board.config, place).expect("writes");
        let variables = "bootcmd=virtio scan; load virtio 0:1 ${scriptaddr} boot.scr && source ${scriptaddr}\n\
            scriptaddr=0x40200000\nkernel_addr_r=0x40400000\nfdt_addr_r=0x42000000\n\
            BOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=3\n";
        fs::write(dir.join("variables"), variables).expect("writes");
        let defaults = dir.join("variables");
        run("fw_setenv", &["-c", text(&board.config), "-f", text(&defaults), "bootdelay", "0"]);
        board
    }

    /// Puts scripts of U-Boot into a partition, and nothing else.
    fn fill(&self, partition: u64, scripts: &[(&str, &str)]) {
        let [root, source, image] = ["root", "source", "image"].map(|name| self.dir.join(name));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("boot")).expect("a directory");
        for (name, script) in scripts {
            fs::write(&source, script).expect("writes");
            run("mkimage", &["-T", "script", "-A", "arm", "-d", text(&source), text(&root.join(name))]);
        }
        let _ = fs::remove_file(&image);
        fs::File::create(&image).and_then(|image| image.set_len(MIB)).expect("an image");
        let made = "PATH=$PATH:/usr/sbin:/sbin; mkfs.ext4 -q -F -O ^has_journal -d \"$0\" \"$1\"";
        run("sh", &["-c", made, text(&root), text(&image)]);
        let at = if partition == 1 { MIB } else { (partition * 2 - 7) * MIB };
        let disk = fs::File::options().write(true).open(self.dir.join("disk")).expect("a disk");
        disk.write_all_at(&fs::read(&image).expect("reads"), at).expect("writes");
    }

    /// Whether there is a kernel in a slot.
    pub(crate) fn holds(&self, slot: &str, kernel: bool) {
        let script = format!("echo it is slot {slot} by ${{bootargs}}\npoweroff\n");
        let scripts = [("boot/zImage", &*script), ("boot/board.dtb", "true")];
        self.fill(if slot == "a" { 5 } else { 6 }, if kernel { &scripts } else { &[] });
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let list = run("fw_printenv", &["-c", text(&self.config)]);
        list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    }

    /// What it says until it is switched off, or resets itself.
    fn starts(&self) -> String {
        let [disk, flash] = ["disk", "flash"].map(|name| self.dir.join(name));
        let drives = [
            format!("if=pflash,index=1,format=raw,file={}", flash.display()),
            format!("if=none,id=disk,format=raw,file={}", disk.display()),
        ];
        let output = Command::new("timeout")
            .args(["--signal=KILL", "120", "qemu-system-arm", "-M", "virt", "-m", "128", "-no-reboot"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-bios", UBOOT])
            // U-Boot takes the two chips of this flash for one.
            .args(["-global", "driver=cfi.pflash01,property=old-multiple-chip-handling,value=on"])
            .args(["-drive", &drives[0], "-drive", &drives[1], "-device", "virtio-blk-device,drive=disk"])
            .stdin(Stdio::null())
            .output()
            .expect("QEMU runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(said.contains("Loading Environment from Flash... OK"), "{said}");
        self.mend();
        said
    }

    /// QEMU 7.2 writes only the first block of what goes to the flash through its buffer (its issue 2343). The rest of
    /// the environment is zeros, and U-Boot's checksum tells whether that is all that was lost.
    fn mend(&self) {
        let flash = fs::File::options().read(true).write(true).open(self.dir.join("flash")).expect("a flash");
        let mut environment = vec![0; ENVIRONMENT];
        flash.read_exact_at(&mut environment, 0).expect("reads");
        let written = environment.iter().rposition(|byte| *byte != 0xff).map_or(0, |last| last + 1);
        environment[written..].fill(0);
        flash.write_all_at(&environment, 0).expect("writes");
        run("fw_printenv", &["-c", text(&self.config)]);
    }
}

impl Machine for Board {
    fn power_on(&self, _: bool) -> &'static str {
        for _ in 0..RESETS {
            let said = self.starts();
            for (slot, partition) in [("a", 5), ("b", 6)] {
                let line =
                    format!("it is slot {slot} by root=/dev/mmcblk0p{partition} fleetwave.slot={slot}");
                if said.contains(&line) {
                    return slot;
                }
            }
            assert!(said.contains("resetting ..."), "{said}");
        }
        "none"
    }
}
