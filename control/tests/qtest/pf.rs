//! Who drives an 82576 on the ground, in place of Linux's igb: switches it on for its first virtual function, and answers that one's
//! messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_pmd::bus::pci::View;

/// See the module's head. Ends with the value.
pub struct Pf {
    registers: Arc<Mutex<View>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pf {
    /// Its virtual function gets this address.
    pub fn start(registers: View, mac: [u8; 6]) -> Pf {
        begin(&registers);
        let registers = Arc::new(Mutex::new(registers));
        let is_over = Arc::new(AtomicBool::new(false));
        let (its, ends) = (Arc::clone(&registers), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                serve(&its.lock().unwrap(), mac);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Pf { registers, is_over, thread: Some(thread) }
    }

    /// It is reset, and begins anew: what its virtual function had is gone.
    pub fn reset(&self) {
        begin(&self.registers.lock().unwrap());
    }
}

impl Drop for Pf {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// From a reset to its work.
fn begin(pf: &View) {
    pf.write32(CTRL, pf.read32(CTRL) | 1 << 26);
    // Full duplex, link up.
    pf.write32(CTRL, 1 | 1 << 6);
    // Interrupts by vectors.
    pf.write32(GPIE, 0x10);
    // Pools: those of the virtual function's, and its own, by default.
    pf.write32(MRQC, 3);
    pf.write32(VT_CTL, 1 | 1 << 7 | 1 << 30);
    pf.write32(DTXSWC, 1 << 31);
    for pool in 0..2 {
        // Untagged frames, broadcasts.
        pf.write32(VMOLR + pool * 4, pf.read32(VMOLR + pool * 4) | 1 << 24 | 1 << 27);
    }
    // Frames are received without their checksum.
    pf.write32(RCTL, pf.read32(RCTL) | 2 | 1 << 26);
    pf.write32(TCTL, pf.read32(TCTL) | 2);
    // The link: its transceiver 1 negotiates anew, which takes half a second.
    pf.write32(MDIC, 1 << 26 | 1 << 21 | 0x1340);
    // It has been reset: its virtual functions are told so.
    pf.write32(CTRL_EXT, pf.read32(CTRL_EXT) | 1 << 14);
}

/// Answers what the virtual function says, if it says something.
fn serve(pf: &View, mac: [u8; 6]) {
    let wishes = pf.read32(MBVFICR);
    // All ones: the machine is gone.
    if wishes & 1 == 0 || wishes == u32::MAX {
        return;
    }
    pf.write32(MBVFICR, 1);
    let message: [u32; 3] = [0, 4, 8].map(|at| pf.read32(MESSAGE + at));
    pf.write32(MAILBOX, MAILBOX_ACK);
    let [a, b, c, d, e, f] = mac;
    let (low, high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0]));
    let mut answer = vec![message[0] | DONE | CLEAR_TO_SEND];
    match message[0] & 0xffff {
        RESET => {
            pf.write32(VFTE, pf.read32(VFTE) | 1);
            pf.write32(VFRE, pf.read32(VFRE) | 1);
            pf.write32(ADDRESS, low);
            pf.write32(ADDRESS + 4, high | 1 << 31 | 1 << 18);
            answer = vec![RESET | DONE, low, high];
        }
        SET_LONGEST => pf.write32(VMOLR, pf.read32(VMOLR) & !0x3fff | 1 << 16 | message[1] & 0x3fff),
        SET_PROMISCUOUS => answer = vec![message[0] | REFUSED],
        _ => {}
    }
    while pf.read32(MAILBOX) & MAILBOX_PF == 0 {
        pf.write32(MAILBOX, MAILBOX_PF);
    }
    for (at, word) in (0..).step_by(4).zip(answer) {
        pf.write32(MESSAGE + at, word);
    }
    pf.write32(MAILBOX, MAILBOX_MESSAGE);
}

const CTRL: u64 = 0x0000;
const CTRL_EXT: u64 = 0x0018;
const MDIC: u64 = 0x0020;
const RCTL: u64 = 0x0100;
const TCTL: u64 = 0x0400;
const MESSAGE: u64 = 0x0800;
const MAILBOX: u64 = 0x0c00;
const MBVFICR: u64 = 0x0c80;
const VFRE: u64 = 0x0c8c;
const VFTE: u64 = 0x0c90;
const GPIE: u64 = 0x1514;
const DTXSWC: u64 = 0x3500;
const ADDRESS: u64 = 0x5408;
const MRQC: u64 = 0x5818;
const VT_CTL: u64 = 0x581c;
const VMOLR: u64 = 0x5ad0;

const MAILBOX_MESSAGE: u32 = 1;
const MAILBOX_ACK: u32 = 2;
const MAILBOX_PF: u32 = 8;

// Messages, and what stands in an answer.
const RESET: u32 = 1;
const SET_LONGEST: u32 = 5;
const SET_PROMISCUOUS: u32 = 6;
const DONE: u32 = 1 << 31;
const REFUSED: u32 = 1 << 30;
const CLEAR_TO_SEND: u32 = 1 << 29;
