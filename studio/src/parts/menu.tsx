// A button that opens a short list of actions.

import type { ComponentChildren } from 'preact';
import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { Icon, type IconName } from './icons';
import { Button } from './ui';

export function Menu(props: { label: string; icon?: IconName; children: ComponentChildren }) {
  const [isOpen, setOpen] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  const id = useId();
  useEffect(() => {
    if (!isOpen) return;
    const items = () => [...(box.current?.querySelectorAll<HTMLElement>('[role=menuitem]') ?? [])];
    items()[0]?.focus();
    const away = (e: Event) => {
      if (!box.current?.contains(e.target as Node)) setOpen(false);
    };
    const onKey = (e: KeyboardEvent) => {
      const all = items();
      const now = all.indexOf(document.activeElement as HTMLElement);
      const to: Record<string, number> = {
        ArrowDown: (now + 1) % all.length,
        ArrowUp: (now - 1 + all.length) % all.length,
        Home: 0,
        End: all.length - 1,
      };
      if (e.key === 'Escape') {
        e.stopPropagation();
        setOpen(false);
        box.current?.querySelector('button')?.focus();
      } else if (e.key === 'Tab') setOpen(false);
      else if (to[e.key] !== undefined) {
        e.preventDefault();
        all[to[e.key] ?? 0]?.focus();
      } else return;
      e.stopPropagation();
    };
    document.addEventListener('pointerdown', away);
    const element = box.current;
    element?.addEventListener('keydown', onKey);
    return () => {
      document.removeEventListener('pointerdown', away);
      element?.removeEventListener('keydown', onKey);
    };
  }, [isOpen]);
  return (
    <div class="menu" ref={box}>
      <Button
        icon={props.icon ?? 'more'}
        iconOnly
        aria-haspopup="menu"
        aria-expanded={isOpen}
        aria-controls={isOpen ? id : undefined}
        onClick={() => setOpen(!isOpen)}
      >
        {props.label}
      </Button>
      {isOpen && (
        <div
          id={id}
          class="menu-list"
          role="menu"
          aria-label={props.label}
          // `data-keep`: a part that opens more of the list rather than doing something.
          onClick={(e) => {
            if ((e.target as HTMLElement).closest('[role=menuitem]:not([data-keep])')) setOpen(false);
          }}
        >
          {props.children}
        </div>
      )}
    </div>
  );
}

export function MenuItem(props: {
  icon?: IconName;
  keep?: boolean;
  onClick: () => void;
  children: ComponentChildren;
}) {
  return (
    <button
      type="button"
      role="menuitem"
      tabIndex={-1}
      data-keep={props.keep || undefined}
      onClick={props.onClick}
    >
      {props.icon && <Icon name={props.icon} size={16} />}
      <span>{props.children}</span>
    </button>
  );
}
