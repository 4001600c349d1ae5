//! Which devices are mounted where, from the kernel's own table.

use std::collections::BTreeMap;

/// Mount points by device number, as proc(5), "/proc/[pid]/mountinfo", lists them.
pub(super) fn parse(mountinfo: &str) -> BTreeMap<(u32, u32), Vec<String>> {
    let mut mounts: BTreeMap<(u32, u32), Vec<String>> = BTreeMap::new();
    for line in mountinfo.lines() {
        // Fields 3 and 5: major:minor, and the mount point with spaces as octal escapes.
        let mut fields = line.split(' ').skip(2);
        let (Some(number), Some(_root), Some(point)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let Some((major, minor)) = number.split_once(':') else { continue };
        if let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) {
            let point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
            mounts.entry((major, minor)).or_default().push(point);
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_device_number() {
        let table = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
                     30 22 8:1 /var /mnt/with\\040space rw - ext4 /dev/sda1 rw\n\
                     31 22 0:21 / /proc rw - proc proc rw\nnonsense\n";
        let mounts = parse(table);
        assert_eq!(mounts[&(8, 1)], ["/", "/mnt/with space"]);
        assert_eq!(mounts[&(0, 21)], ["/proc"]);
    }
}
