// The few controls that every view is made of.

import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useId, useRef } from 'preact/hooks';
import { t } from '../i18n';
import { Icon, type IconName } from './icons';

interface ButtonProps extends Omit<JSX.IntrinsicElements['button'], 'icon'> {
  icon?: IconName;
  kind?: 'plain' | 'accent' | 'quiet' | 'danger';
  /** Only the icon is seen; `children` becomes its name. */
  iconOnly?: boolean;
}

export function Button({ icon, kind = 'plain', iconOnly, children, ...rest }: ButtonProps) {
  return (
    <button
      type="button"
      title={iconOnly && typeof children === 'string' ? children : undefined}
      {...rest}
      class={`button ${kind} ${iconOnly ? 'icon-only' : ''}`}
    >
      {icon && <Icon name={icon} />}
      {iconOnly ? <span class="unseen">{children}</span> : children}
    </button>
  );
}

interface FieldProps {
  label: string;
  error?: string | null;
  hint?: string | null;
  /** Beside the label, on the right. */
  aside?: ComponentChildren;
  children: (attributes: {
    id: string;
    'aria-invalid'?: 'true';
    'aria-describedby'?: string;
  }) => ComponentChildren;
}

/** A labelled control with its hint, or the error that it caused. */
export function Field({ label, error, hint, aside, children }: FieldProps) {
  const id = useId();
  const note = error ?? hint;
  return (
    <div class="field">
      <div class="field-head">
        <label for={id}>{label}</label>
        {aside}
      </div>
      {children({
        id,
        ...(error ? { 'aria-invalid': 'true' as const } : {}),
        ...(note ? { 'aria-describedby': `${id}-note` } : {}),
      })}
      {note && (
        <p id={`${id}-note`} class={error ? 'field-error' : 'field-hint'}>
          {note}
        </p>
      )}
    </div>
  );
}

interface SliderProps {
  label: string;
  value: number;
  min: number;
  max: number;
  step: number;
  error?: string | null;
  onChange: (value: number) => void;
}

/** A slider and, for exact values, a number field that shares its label. */
export function Slider({ label, value, min, max, step, error, onChange }: SliderProps) {
  const shown = Number.isFinite(value) ? Math.min(max, Math.max(min, value)) : min;
  const part = ((shown - min) / (max - min)) * 100;
  const read = (e: Event) => onChange((e.currentTarget as HTMLInputElement).valueAsNumber);
  return (
    <Field
      label={label}
      error={error}
      aside={
        <input
          class="number"
          type="number"
          aria-label={`${label} (${t('form.exact')})`}
          aria-invalid={error ? 'true' : undefined}
          min={min}
          max={max}
          step={step}
          value={Number.isFinite(value) ? value : ''}
          onInput={read}
        />
      }
    >
      {(attributes) => (
        <input
          {...attributes}
          type="range"
          min={min}
          max={max}
          step={step}
          value={shown}
          style={{ '--part': `${part}%` }}
          onInput={read}
        />
      )}
    </Field>
  );
}

export function Empty(props: { icon: IconName; title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <Icon name={props.icon} size={32} />
      <h2>{props.title}</h2>
      {props.children}
    </div>
  );
}

export function Loading({ label }: { label?: string }) {
  return (
    <p class="loading" role="status">
      <span class="spinner" aria-hidden="true" /> {label ?? t('state.loading')}
    </p>
  );
}

interface DialogProps {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
  wide?: boolean;
}

/** A modal dialog: the browser keeps the focus in it and gives it back. */
export function Dialog({ title, onClose, children, wide }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    element.current?.showModal();
  }, []);
  return (
    <dialog
      ref={element}
      class={wide ? 'wide' : ''}
      aria-labelledby={id}
      onClose={onClose}
      onClick={(e) => e.target === element.current && element.current?.close()}
    >
      <div class="dialog-body">
        <header>
          <h2 id={id}>{title}</h2>
          <Button icon="close" kind="quiet" iconOnly onClick={() => element.current?.close()}>
            {t('action.close')}
          </Button>
        </header>
        {children}
      </div>
    </dialog>
  );
}

interface ConfirmProps {
  title: string;
  text: string;
  action: string;
  onConfirm: () => void;
  onClose: () => void;
}

export function Confirm({ title, text, action, onConfirm, onClose }: ConfirmProps) {
  return (
    <Dialog title={title} onClose={onClose}>
      <p>{text}</p>
      <footer class="row end">
        <Button onClick={onClose}>{t('action.keep')}</Button>
        <Button
          kind="danger"
          onClick={() => {
            onConfirm();
            onClose();
          }}
        >
          {action}
        </Button>
      </footer>
    </Dialog>
  );
}

export function Bar({ part, label }: { part: number | null; label: string }) {
  const value = part === null ? undefined : Math.round(part * 100);
  return (
    <div
      class={`bar ${part === null ? 'unknown' : ''}`}
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={value}
    >
      <span style={{ width: `${value ?? 100}%` }} />
    </div>
  );
}
