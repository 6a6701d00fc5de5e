//! NVML, as far as it is asked.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    sync::atomic::Ordering::Relaxed,
};

use crate::{BUS_ID, Kind, RESERVED_BYTES, TOTAL, USED, handle};

const TEMPERATURE: c_uint = 45;
const MILLIWATTS: c_uint = 123_000;

/// NVML's answers.
const NVML_SUCCESS: c_int = 0;
const NVML_ERROR_INVALID_ARGUMENT: c_int = 2;
const NVML_ERROR_INSUFFICIENT_SIZE: c_int = 7;

#[repr(C)]
pub struct NvmlMemory {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

#[repr(C)]
pub struct NvmlProcess {
    pid: c_uint,
    used_bytes: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    id: *const c_char,
    device: *mut *mut c_void,
) -> c_int {
    if unsafe { CStr::from_ptr(id) } != BUS_ID {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    unsafe { device.write(handle((Kind::Context, 0), 1)) };
    NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    _device: *mut c_void,
    memory: *mut NvmlMemory,
) -> c_int {
    let memory = unsafe { &mut *memory };
    if memory.version != (size_of::<NvmlMemory>() | 2 << 24) as c_uint {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    let (used, total) = (USED.load(Relaxed) as u64, TOTAL.load(Relaxed) as u64);
    (memory.total, memory.used) = (total, used);
    memory.reserved = RESERVED_BYTES as u64;
    memory.free = total.saturating_sub(used + memory.reserved);
    NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    _device: *mut c_void,
    count: *mut c_uint,
    processes: *mut NvmlProcess,
) -> c_int {
    let used = USED.load(Relaxed);
    let n = c_uint::from(used > 0);
    let room = unsafe { count.replace(n) };
    if n > room {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    if n > 0 {
        let (pid, used_bytes) = (std::process::id(), used as u64);
        let none = c_uint::MAX;
        let process = NvmlProcess { pid, used_bytes, gpu_instance: none, compute_instance: none };
        unsafe { processes.write(process) };
    }
    NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    _device: *mut c_void,
    _sensor: c_uint,
    degrees: *mut c_uint,
) -> c_int {
    unsafe { degrees.write(TEMPERATURE) };
    NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(
    _device: *mut c_void,
    milliwatts: *mut c_uint,
) -> c_int {
    unsafe { milliwatts.write(MILLIWATTS) };
    NVML_SUCCESS
}
