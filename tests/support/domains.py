"""Domain XML as virt-manager, virt-install and hand-written definitions look on real hosts, for tests of the fabric."""

from __future__ import annotations

DESKTOP = r"""
<domain type='kvm' id='7'>
  <name>files01</name>
  <uuid>6f0f2b6c-7b0e-4d0f-9c3e-0a7f3d7b3c11</uuid>
  <genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>
  <title>File server</title>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>4194304</memory>
  <memoryBacking><hugepages/><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu placement='static' cpuset='0-3' current='2'>4</vcpu>
  <cputune><shares>2048</shares><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='0'/></cputune>
  <numatune><memory mode='strict' nodeset='0'/></numatune>
  <resource><partition>/machine/production</partition></resource>
  <sysinfo type='smbios'><system><entry name='uuid'>6f0f2b6c-7b0e-4d0f-9c3e-0a7f3d7b3c11</entry></system></sysinfo>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='yes' name='secure-boot'/></firmware>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/files01_VARS.fd</nvram>
    <bootmenu enable='yes'/>
  </os>
  <features><acpi/><apic/><hyperv mode='custom'><relaxed state='on'/></hyperv><kvm><hidden state='on'/></kvm></features>
  <cpu mode='host-model' check='partial'/>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hypervclock' present='yes'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap' queues='4'/>
      <source file='/var/lib/libvirt/images/files01.qcow2' index='3'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file' index='4'><format type='qcow2'/><source file='/golden/debian.qcow2'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
      <serial>ROOT-0001</serial>
      <boot order='1'/>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/var/lib/libvirt/images/files01-data.qcow2'/>
      <target dev='sda' bus='scsi'/>
      <address type='drive' controller='0' bus='0' target='0' unit='1'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/scratch/swap.raw'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/><source dev='/dev/vg0/lv0'/><target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'><host name='mon1' port='6789'/></source>
      <target dev='vdd' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/shared/quorum.qcow2'/><target dev='vde' bus='virtio'/><shareable/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='/iso/debian-12.iso' startupPolicy='optional'/>
      <target dev='sdb' bus='sata'/><readonly/>
    </disk>
    <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
    <controller type='scsi' index='0' model='virtio-scsi'/>
    <interface type='network'>
      <mac address='52:54:00:aa:00:01'/>
      <source network='servers' portgroup='web' portid='0c5b' bridge='virbr1'/>
      <target dev='vnet3'/>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <filterref filter='clean-traffic'/>
      <boot order='2'/>
      <alias name='net0'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:aa:00:02'/><source bridge='br-storage'/>
      <virtualport type='openvswitch'><parameters interfaceid='6f1f2b6c-7b0e-4d0f-9c3e-0a7f3d7b3c12'/></virtualport>
      <vlan><tag id='42'/></vlan><model type='e1000e'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:aa:00:03'/><source dev='eno1' mode='bridge'/><model type='virtio'/>
    </interface>
    <serial type='file'>
      <source path='/var/log/vm/files01.log'/><log file='/var/log/vm/files01-2.log'/>
      <target type='isa-serial' port='0'><model name='isa-serial'/></target><alias name='serial0'/>
    </serial>
    <console type='file'><source path='/var/log/vm/files01.log'/><target type='serial' port='0'/></console>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-files01/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <channel type='tcp'><source mode='bind' host='10.0.0.4' service='4711'/><target type='virtio' name='x.y.0'/></channel>
    <graphics type='spice' port='5901' autoport='no' listen='10.0.0.4'><listen type='address' address='10.0.0.4'/></graphics>
    <graphics type='vnc' port='5950' autoport='no' websocket='5700'/>
    <graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>
    <filesystem type='mount'><driver type='virtiofs'/><source dir='/srv/share'/><target dir='share'/></filesystem>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <vsock model='virtio'><cid auto='yes' address='3'/></vsock>
    <memballoon model='virtio'/>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'/>
</domain>
"""

PLAIN = """
<domain type='qemu'>
  <name>web01</name>
  <uuid>0d3f2b6c-7b0e-4d0f-9c3e-0a7f3d7b3c11</uuid>
  <memory unit='MiB'>256</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/images/web01.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'><mac address='52:54:00:bb:00:01'/><source network='servers'/></interface>
    <graphics type='vnc' autoport='yes'/>
  </devices>
</domain>
"""

DIRECT_BOOT = PLAIN.replace(
    "</type></os>", "</type><kernel>/boot/guest/vmlinuz</kernel><initrd>/boot/guest/initrd</initrd></os>"
)

LEGACY_UEFI = PLAIN.replace(
    "</type></os>",
    "</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"
    "<nvram>/var/lib/libvirt/qemu/nvram/web01_VARS.fd</nvram></os>",
)


def with_device(text: str, device: str) -> str:
    """Return the domain with one more device."""
    return text.replace("</devices>", f"{device}</devices>")
